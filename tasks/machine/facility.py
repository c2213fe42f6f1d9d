"""From the energy of a device to that of the facility around it, and to carbon dioxide."""

JOULES_PER_KWH = 3.6e6


def facility_kwh(joules: float, power_usage_effectiveness: float) -> float:
    """kWh that the whole facility spends for ``joules`` of its computers.

    PUE = energy of the facility / energy of its computers (ISO/IEC 30134-2).
    """
    return joules * power_usage_effectiveness / JOULES_PER_KWH


def co2e_kg(kwh: float, grid_intensity: float) -> float:
    """kg of CO2 equivalent for ``kwh`` from a grid that emits ``grid_intensity`` g per kWh."""
    return kwh * grid_intensity / 1000

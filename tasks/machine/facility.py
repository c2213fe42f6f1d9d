"""Energy of a whole facility, and its carbon dioxide, from the energy of its computers.

A facility also spends energy on cooling and power supply: that is its power usage effectiveness
(PUE). What a kWh emits depends on the grid. A person states both figures; they are applied here,
once.
"""

JOULES_PER_KWH = 3.6e6


def facility_kwh(joules: float, power_usage_effectiveness: float) -> float:
    """kWh that the whole facility spends for ``joules`` of its computers.

    PUE = energy of the facility / energy of its computers (ISO/IEC 30134-2).
    """
    return joules * power_usage_effectiveness / JOULES_PER_KWH


def co2e_kg(kwh: float, grid_intensity: float) -> float:
    """kg of CO2 equivalent for ``kwh`` from a grid that emits ``grid_intensity`` g per kWh."""
    return kwh * grid_intensity / 1000

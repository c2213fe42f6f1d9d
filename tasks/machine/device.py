"""The torch devices that a run computes on."""

from storage.step import Runtime


def devices_of(runtime: Runtime) -> list[str]:
    """The torch devices of a runtime, at least one; a device that is listed twice is given twice.

    Raises:
        ValueError: torch knows no such device, or a GPU is asked for and there is none.
    """
    if runtime.device != "auto":
        return [_checked(name.strip()) for name in runtime.device.split(",")]
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{number}" for number in range(count)] or ["cpu"]


def choose_device(runtime: Runtime) -> str:
    """The one torch device that this process computes on: the first of ``devices_of``, whose errors
    it raises."""
    import torch

    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    return devices_of(runtime)[0]


def _checked(name: str) -> str:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device {name!r} is none that torch knows: use 'auto', 'cpu' or 'cuda:0', or several "
            "of them, such as 'cuda:0,cuda:1'"
        ) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(
            f"device {name!r} is asked for, and torch {torch.__version__} sees "
            f"{count or 'no'} GPU: use device 'cpu' or 'auto', or install a CUDA build of torch"
        )
    return name

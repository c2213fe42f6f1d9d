"""Which device computes, and how it is called."""

from storage.cache import Runtime


def choose_device(runtime: Runtime) -> str:
    """The torch device of a runtime; ``auto`` is the first GPU where there is one.

    Raises:
        ValueError: torch knows no such device, or a GPU is asked for and there is none.
    """
    import torch

    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if runtime.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(runtime.device)
    except RuntimeError as error:
        raise ValueError(
            f"device {runtime.device!r} is none that torch knows: use 'auto', 'cpu' or 'cuda:0'"
        ) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(
            f"device {runtime.device!r} is asked for, and torch {torch.__version__} sees "
            f"{count or 'no'} GPU: use device 'cpu' or 'auto', or install a CUDA build of torch"
        )
    return runtime.device

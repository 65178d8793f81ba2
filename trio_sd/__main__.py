"""``python -m trio_sd`` is the ``trio-sd`` command."""

from .cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()

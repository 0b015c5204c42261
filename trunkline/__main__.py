"""Where the command begins, also as `python -m trunkline`."""

import signal


def main() -> None:
    """See `trunkline.cli.main`.

    The imports take as long as many a command. Ctrl-C during them ends it as it ends any program, and not with the place in
    somebody's module that had just been reached.
    """
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from trunkline.cli import main as run  # noqa: PLC0415

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()

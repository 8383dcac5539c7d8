"""Run the `portllm` command as `python -m portllm`."""

from portllm.cli.main import main

if __name__ == "__main__":
    main()

"""Write envs/NAME.yaml from envs/NAME.txt: the same pins, as Snakemake's `conda:` wants them.

The pins stand in the file, not behind a `-r`: Snakemake copies the file elsewhere before it makes
the environment, and tells a changed environment by the file's content.
"""

from pathlib import Path

import yaml

NAMES = ("workflow", "train", "eval", "vllm")


def conda_environment(pins: list[str]) -> dict[str, object]:
    """The conda definition of an environment that pip fills with the pinned packages."""
    dependencies = ["python=3.11", "pip", {"pip": pins}]
    return {"channels": ["conda-forge", "nodefaults"], "dependencies": dependencies}


def main() -> None:
    """Write the conda definitions beside the pinned files."""
    here = Path(__file__).parent
    for name in NAMES:
        pins = (here / f"{name}.txt").read_text().split()
        text = yaml.safe_dump(conda_environment(pins), sort_keys=False)
        (here / f"{name}.yaml").write_text(text)


if __name__ == "__main__":
    main()

"""Code that a study brings finds no credentials in its environment."""

import json
import os
import subprocess

import pytest
from conftest import Checkout, use_stand_ins

from portllm import credentials
from portllm.snakemake_hooks import slurm
from portllm.storage import files

VALUE = "hf_value_that_nobody_may_read"
SECRET = {
    "HF_TOKEN": VALUE,
    "HUGGING_FACE_HUB_TOKEN": VALUE,
    "WANDB_API_KEY": VALUE,
    "WANDB_APIKEY": VALUE,
    "AWS_ACCESS_KEY_ID": VALUE,
    "AWS_SESSION_TOKEN": VALUE,
    "AWS_WEB_IDENTITY_TOKEN_FILE": f"/{VALUE}",
    "AWS_SECRET_ACCESS_KEY": VALUE,
    "AZURE_STORAGE_CONNECTION_STRING": VALUE,
    "GOOGLE_APPLICATION_CREDENTIALS": f"/{VALUE}",
    "KAGGLE_KEY": VALUE,
    "PGPASSWORD": VALUE,
    "TRACKING_URI": f"https://user:{VALUE}@host/path",
}
HARMLESS = {
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_MAX_TOKENS_PER_EXPERT_FUSED_MOE": "8192",
    "HF_ENDPOINT": "https://host:443/path",
    "OMP_NUM_THREADS": "1",
    "KEYBOARD": "us",
}
STUDY = "tests/studies/minute.yaml"
CODE = """
import json, os
import datasets
from huggingface_hub import get_token

def rows():
    yield {"text": json.dumps([dict(os.environ), get_token()])}

def splits(**_):
    found = datasets.Dataset.from_list([{"question": row["text"]} for row in rows()])
    return datasets.DatasetDict({"train": found, "test": found})
"""
TASK = """
task: curious
custom_dataset: !function code.splits
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{question}}"
doc_to_target: 0
doc_to_choice: ["no", "yes"]
"""


def test_names_and_urls_tell_credentials() -> None:
    assert credentials.names(SECRET | HARMLESS) == list(SECRET)


@pytest.mark.slow
def test_generators_and_task_functions_see_none(checkout: Checkout) -> None:
    folder = checkout.directory / "own"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "curious.yaml").write_text(TASK)
    (folder / "token").write_text(VALUE)
    study = checkout.read(STUDY) | {"allow_custom_code": True}
    study["corpora"]["curious"] = {"sources": [{"generator": "own/code.py:rows"}]}
    study["tasks"]["curious"] = {"include": "own"}
    checkout.write("own.yaml", study)
    made = ("results/corpora/curious.jsonl", "results/tasks/curious")
    # For the whole run, as in a user's shell.
    given = SECRET | {"HF_TOKEN_PATH": str(folder / "token")}
    checkout.complete(*made, "--configfile", "own.yaml", **given)
    corpus, task = (checkout.directory / path for path in made)
    (of_generator,) = (row["text"] for row in files.read_json_lines(corpus))
    (of_function,) = (row["prompt"] for row in files.read_json_lines(task / "train.jsonl"))
    for text in (of_generator, of_function):
        assert "PATH" in json.loads(text)[0]
        assert VALUE not in text


def test_jobs_that_compute_see_none(checkout: Checkout) -> None:
    use_stand_ins(checkout)
    (checkout.directory / "stand_ins").mkdir()
    target = "results/scores/tiny/first/demo_yes_no.json"
    checkout.complete(target, "--configfile", STUDY, **SECRET)
    lines = files.read_json_lines(checkout.directory / "stand_ins" / "executions.jsonl")
    tokens = {line["output"]: line["HF_TOKEN"] for line in lines}
    assert set(tokens) >= {target, "results/models/tiny/base", "results/models/tiny/first"}
    fetched = {name for name in tokens if name.startswith(("results/corpora", "results/tasks"))}
    assert {name for name, token in tokens.items() if token} == fetched


def test_sbatch_gets_none() -> None:
    given = os.environ | SECRET
    command_of = slurm.without_credentials(lambda job, **_: f"printenv; : {job}", given)
    command = command_of("a job", settings=None)
    environment = subprocess.check_output(command, shell=True, env=given, text=True)
    assert "PATH=" in environment
    assert VALUE not in environment

"""The file of `ray up`, the Dockerfile and the compose file: as their readers read them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from rendering_jobs import collect, job_of, on_gpus, settings_of

from deploy.rendering.compose import compose_file
from deploy.rendering.docker import dockerfile
from deploy.rendering.ray_up import ray_up
from schemas.errors import SpecError

HOSTS = {"head": "10.0.0.1", "workers": ["10.0.0.2", "10.0.0.3", "node4.lab"], "user": "lab", "key": "~/.ssh/lab"}


def up(job: Any = None, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(ray_up(job or job_of(collect()), settings_of(hosts=HOSTS, **changes)))
    return found


def test_ray_takes_the_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(up())
    config.setdefault("cluster_synced_files", [])
    validate_config(config)
    assert config["max_workers"] == 3
    assert config["provider"]["head_ip"] == "10.0.0.1"


def test_every_machine_asks_for_the_token_which_only_its_user_reads() -> None:
    found = up()
    assert found["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "chmod 600 ~/.ray/auth_token" in found["setup_commands"]
    for commands in (found["head_start_ray_commands"], found["worker_start_ray_commands"]):
        assert commands[0].endswith("ray stop")
        assert "RAY_AUTH_MODE=token" in shlex.split(commands[1])
    assert "--dashboard-host=127.0.0.1" in found["head_start_ray_commands"][1]
    elsewhere = yaml.safe_load(ray_up(job_of(collect()), settings_of(hosts={**HOSTS, "dashboard": "10.0.0.1"})))
    assert "--dashboard-host=10.0.0.1" in elsewhere["head_start_ray_commands"][1]
    assert '--address="$RAY_HEAD_IP:6379"' in found["worker_start_ray_commands"][1]


def test_bash_reads_the_commands(tmp_path: Path) -> None:
    hosts = {**HOSTS, "venv": "/opt/headworks"}
    text = ray_up(job_of(collect()), settings_of(hosts=hosts, scratch="/nvme", environment={"NOTE": "a 'b' $(c)"}))
    found = yaml.safe_load(text)
    for command in [*found["setup_commands"], *found["head_start_ray_commands"], *found["worker_start_ray_commands"]]:
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
    assert ". /opt/headworks/bin/activate && " in found["head_start_ray_commands"][1]
    assert "NOTE=a 'b' $(c)" in shlex.split(found["worker_start_ray_commands"][1])


HOSTILE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)


@settings(deadline=None, max_examples=25)
@given(HOSTILE)
def test_no_value_becomes_a_command_or_an_instruction(value: str) -> None:
    """The words of every command are the same but for that one, and so are the lines of the Dockerfile."""
    plain, hostile = up(environment={"NOTE": "plain"}), up(environment={"NOTE": value})
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        for one, other in zip(plain[kind], hostile[kind], strict=True):
            words = [word if word != f"NOTE={value}" else "NOTE=plain" for word in shlex.split(other)]
            assert words == shlex.split(one)
    lines = dockerfile(None, settings_of(environment={"NOTE": value})).split("\n")
    others = dockerfile(None, settings_of(environment={"NOTE": "plain"})).split("\n")
    (changed,) = [line for line, other in zip(lines, others, strict=True) if line != other] or ['ENV NOTE="plain"']
    assert re.fullmatch(r'ENV NOTE="(?:[^"$\\]|\\["$\\])*"', changed)


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        ({**HOSTS, "head": None}, "hosts.head is not given"),
        ({**HOSTS, "workers": ["10.0.0.2"]}, "hosts names 2 machines, the head among them, but .* need 4"),
        ({**HOSTS, "workers": ["10.0.0.2", "10.0.0.2", "10.0.0.3"]}, "hosts.workers names a machine twice"),
        ({**HOSTS, "workers": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}, "or the head"),
    ],
)
def test_machines_that_do_not_fit_are_refused(hosts: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ray_up(job_of(collect()), settings_of(hosts=hosts))


def test_a_job_that_takes_what_there_is_takes_all_machines() -> None:
    assert up(job_of(collect(workers={"num_workers": 0})))["max_workers"] == 3


def instructions(text: str) -> list[tuple[str, str]]:
    """Those of a Dockerfile, with their lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined)]


@pytest.mark.parametrize("variant", ["cpu", "cu126"])
def test_torch_comes_from_its_own_index_and_everything_else_is_pinned(variant: str) -> None:
    found = instructions(dockerfile(None, settings_of(docker={"variant": variant})))
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert '--index-url "$TORCH_INDEX"' in installs[0]
    assert "--index-url" not in installs[1]
    assert f'assert "{variant}" in torch.__version__' in installs[1]
    assert "--constraint" in installs[1]
    assert any("NVIDIA_VISIBLE_DEVICES" in rest for word, rest in found) == (variant != "cpu")


def test_nothing_runs_as_root_and_init_ends_what_is_left() -> None:
    found = instructions(dockerfile(None, settings_of(docker={"user_id": 1234})))
    assert [rest for word, rest in found if word == "USER"] == ["1234:1234"]
    last_root = max(index for index, (word, _) in enumerate(found) if word == "RUN")
    assert found.index(("USER", "1234:1234")) > last_root
    assert ("ENTRYPOINT", '["tini", "-g", "--"]') in found
    stages = [rest.split()[-1] for word, rest in found if word == "FROM"]
    assert stages == ["base", "service", "cluster"]
    healths = [index for index, (word, _) in enumerate(found) if word == "HEALTHCHECK"]
    assert len(healths) == 1
    assert found[: healths[0]].count(("FROM", "base AS service")) == 1
    known = {"FROM", "RUN", "ENV", "WORKDIR", "ARG", "COPY", "USER", "ENTRYPOINT", "CMD", "EXPOSE", "HEALTHCHECK"}
    assert {word for word, _ in found} <= known


def test_what_is_copied_is_there() -> None:
    root = Path(__file__).parents[3]
    for word, rest in instructions(dockerfile(None, settings_of())):
        if word == "COPY":
            assert all((root / name).exists() for name in rest.split()[:-1]), rest


def test_a_job_with_gpus_takes_cuda() -> None:
    assert 'assert "cu130" in' in dockerfile(on_gpus(), settings_of())
    assert 'assert "cpu" in' in dockerfile(job_of(collect()), settings_of())


def test_values_of_the_environment_stay_values() -> None:
    text = dockerfile(None, settings_of(environment={"NOTE": 'a "b" $HOME \\ c'}))
    assert 'ENV NOTE="a \\"b\\" \\$HOME \\\\ c"' in text


def test_the_service_and_its_database() -> None:
    text = compose_file(None, settings_of(image=None, service={"port": 9000}, environment={"A": "$x"}))
    found = yaml.safe_load(text)
    service, database = found["services"]["service"], found["services"]["database"]
    assert service["build"]["target"] == "service"
    assert service["ports"] == ["127.0.0.1:9000:8470"]
    assert service["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "ports" not in database
    assert database["networks"] == ["inside"]
    assert found["networks"]["inside"] == {"internal": True}
    named = {volume.split(":")[0] for one in (service, database) for volume in one["volumes"]}
    assert named == set(found["volumes"])
    assert service["environment"]["A"] == "$$x"
    from deploy.service.settings import Settings

    config = Settings.model_validate(yaml.safe_load(found["configs"]["service"]["content"]))
    assert config.clusters["local"].token_file.removeprefix("/run/secrets/") in found["secrets"]
    assert service["command"][-1] == service["configs"][0]["target"]
    assert config.policy == service["configs"][1]["target"]
    assert config.database == service["environment"]["HEADWORKS_DATABASE"]
    for one in (service["environment"]["PGPASSWORD"], database["environment"]["POSTGRES_PASSWORD"]):
        assert one.startswith("${DATABASE_PASSWORD:?")
    assert "build" not in yaml.safe_load(compose_file(on_gpus(), settings_of()))["services"]["service"]

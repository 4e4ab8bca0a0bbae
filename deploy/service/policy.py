"""What each team's jobs may reach: the operator's policy file, and the check of a job against it.

The check walks over everything that the types of a spec say it reaches (``schemas.reach``), so a field that is added
to a spec is either checked here or refused. It holds for admins, too. What a spec cannot say needs no rule: there is no
field for an entrypoint, a runtime environment or code of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal, assert_never

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, StringConstraints

from deploy.service import demand, sources
from deploy.service.access import Principal
from deploy.service.links import Looked, require_within
from deploy.service.places import Place, read_place
from pipeline.spec_file import read_yaml
from schemas.errors import ForbiddenError
from schemas.fields import Name, Spec
from schemas.interpret import chat_address
from schemas.pipeline import AnyJob, PipelineSpec
from schemas.reach import Reached, What, reached

STDLIB = "{stdlib}"
MOST_PROBLEMS = 20
"""Named in one message; what comes after them is not looked at."""

_OWN: dict[What, str] = {"write": "", "model_folders": "", "tokenizer": "model"}
"""Values that stand for the job's own output or model, or for none."""

Prefix = Annotated[str, AfterValidator(lambda text: str(read_place(text)))]
"""A local folder or a URL; it stands for itself and everything below it."""

ReadPrefix = Annotated[str, AfterValidator(lambda text: text if text == STDLIB else str(read_place(text)))]
"""The same, or ``{stdlib}``."""

Source = Annotated[str, AfterValidator(sources.checked_source)]
"""A local folder, ``hub:OWNER/NAME`` or ``package:PACKAGE/FILE``, the last two with ``*`` and ``?`` within a part."""

ChatServer = Annotated[str, AfterValidator(chat_address)]
"""``https://host/v1``: one address, not what is below it."""

Import = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$")]
"""``module.attribute``."""


class Greatest(Spec):
    """What one job may ask for, all that runs of it at the same time together; None: no limit."""

    workers: PositiveInt | None = None
    """Worker processes."""
    cpus: PositiveFloat | None = None
    """CPU cores."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs; 0: none."""


class TeamPolicy(Spec):
    """What the jobs of one team may reach. What is not listed is refused."""

    read: tuple[ReadPrefix, ...] = ()
    """Places that they may read, besides those that they may write. ``{stdlib}``: Python's own sources, as a corpus."""
    write: tuple[Prefix, ...] = ()
    """Places below which they may write."""
    models: tuple[Source, ...] = ()
    """Models and tokenizers. Local folders of models are trusted: a model's files may name other files."""
    datasets: tuple[Source, ...] = ()
    """Corpora of format ``huggingface``. Local folders of these are trusted, too."""
    imports: tuple[Import, ...] = ()
    """Callables for ``python:`` models, each by its whole name: code that runs with whatever arguments a spec gives.
    Workers hold to ``HEADWORKS_ALLOWED_IMPORTS`` as well."""
    remote_code: bool = False
    """Whether arguments of such a callable may say ``trust_remote_code``: code from the Hub runs then."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where metrics may go; ``wandb`` sends them to a company."""
    chat_servers: tuple[ChatServer, ...] = ()
    """Addresses that explainers of kind ``chat`` may ask, each as specs give it, up to ``/chat/completions``. Text of
    the corpus is sent there, with the key of ``HEADWORKS_EXPLAINER_KEY`` if the workers have one."""
    greatest: Greatest = Greatest()
    """Resources of one job."""


class Policy(Spec):
    """The policy file. Without teams nobody may run anything."""

    teams: dict[Name, TeamPolicy] = Field(default_factory=dict)
    """Team -> what it may reach."""
    local_links: Literal["checked", "trusted"] = "checked"
    """``checked``: local places are looked at from the service's machine, and refused where a symbolic link in them
    leads out. ``trusted``: they are not; for storage that the service cannot see and where nobody can make links."""

    def check(self, job: AnyJob, principal: Principal) -> None:
        """Return if the job of this person may run.

        Raises:
            ForbiddenError: it may not; the message names each field, what was got, what is allowed and what to do.
        """
        check = TeamCheck(self, principal)
        found = chain(check.problems_of(job), demand.problems(job, check.team.greatest))
        problems = list(islice(found, MOST_PROBLEMS))
        if len(problems) == 1:
            raise ForbiddenError(problems[0])
        if problems:
            listed = "\n".join(f"  {problem}" for problem in problems)
            count = f"{len(problems)} or more" if len(problems) == MOST_PROBLEMS else len(problems)
            raise ForbiddenError(f"{count} things in this job are not allowed:\n{listed}")

    def require_readable(self, url: str, principal: Principal, *, field: str = "url") -> None:
        """Return if this person may look at a place.

        Raises:
            ForbiddenError: they may not.
        """
        if problem := TeamCheck(self, principal).problem_of(Reached(field, "read", url)):
            raise ForbiddenError(problem)

    def readable(self, principal: Principal) -> list[str]:
        """The places that this person may look at, without Python's sources."""
        team = self.teams.get(principal.team, TeamPolicy())
        return [url for url in dict.fromkeys([*team.write, *team.read]) if url != STDLIB]


class TeamCheck:
    """The rules of one person's team, applied to what a job reaches."""

    def __init__(self, policy: Policy, principal: Principal) -> None:
        if principal.team not in policy.teams:
            raise ForbiddenError(
                f"team {principal.team!r} is not in the service's policy, so its jobs may reach nothing; "
                "ask the operator to add it"
            )
        self.team = policy.teams[principal.team]
        self._name = principal.team
        self._looks = policy.local_links == "checked"
        self._looked = Looked()
        self._write = [read_place(url) for url in self.team.write]
        self._read = [*self._write, *(read_place(url) for url in self.team.read if url != STDLIB)]

    def problems_of(self, job: AnyJob) -> Iterator[str]:
        """Everything that is not allowed, in the order of the spec."""
        for each in _everything(job):
            if problem := self.problem_of(each):
                yield problem

    def problem_of(self, each: Reached) -> str:
        """Why it is not allowed, empty if it is."""
        try:
            self._require(each)
        except ValueError as error:
            return f"{each.field}: {error}"
        return ""

    def _require(self, each: Reached) -> None:
        if each.what == "nothing" or each.value == _OWN.get(each.what):
            return
        match each.what:
            case "read":
                self._require_place(each.value, "read", self._read)
            case "corpus":
                self._require_corpus(each.value)
            case "write":
                self._require_place(each.value, "write", self._write)
            case "model":
                self._require_model(each.value)
            case "tokenizer":
                self._require_source(each.value, "models")
            case "model_folders":
                self._require_source(each.value, "models", wildcards=True)
            case "dataset":
                self._require_source(each.value, "datasets")
            case "revision":
                sources.require_revision(each.value)
            case "arguments":
                self._require_arguments(each.value)
            case "tracker" | "chat":
                self._require_listed(each.value, each.what)
            case unknown:
                assert_never(unknown)

    def _require_listed(self, name: str, what: Literal["tracker", "chat"]) -> None:
        allowed = self.team.trackers if what == "tracker" else self.team.chat_servers
        if name not in allowed:
            raise ValueError(self._not_allowed(name, what, allowed))

    def _require_corpus(self, url: str) -> None:
        if not url.startswith(STDLIB):
            self._require_place(url, "read", self._read, wildcards=True)
            return
        if STDLIB not in self.team.read:
            raise ValueError(self._not_allowed(url, "read", self.team.read))
        rest = url.removeprefix(STDLIB)
        if rest:
            # Below the workers' own Python: there are no links of others in it to look for.
            _read(f"/stdlib{rest}", said=url, wildcards=True, within=Place("", ("stdlib",)))

    def _require_model(self, path: str) -> None:
        if not path.startswith("python:"):
            self._require_source(path, "models")
        elif path.removeprefix("python:") not in self.team.imports:
            raise ValueError(self._not_allowed(path, "import", [f"python:{name}" for name in self.team.imports]))

    def _require_source(self, text: str, kind: Literal["models", "datasets"], *, wildcards: bool = False) -> None:
        allowed: Sequence[str] = getattr(self.team, kind)
        if text.startswith("/"):
            places = [read_place(source) for source in allowed if sources.is_local(source)]
            self._require_place(text, kind, places, wildcards=wildcards)
        elif wildcards or not sources.is_allowed(text, allowed):
            raise ValueError(self._not_allowed(text, kind, allowed))

    def _require_arguments(self, values: object) -> None:
        for text in sources.unsafe_texts(values):
            try:
                self._require_place(text, "read", self._read)
            except ValueError:
                self._require_source(text, "models")
        if not self.team.remote_code and sources.asks_for_remote_code(values):
            raise ValueError(
                f"trust_remote_code runs code from the Hub, which is not allowed for team {self._name!r}; leave it "
                "out, or ask the operator to set remote_code in the policy"
            )

    def _require_place(self, text: str, verb: str, allowed: list[Place], *, wildcards: bool = False) -> None:
        place = _read(text, said=text, wildcards=wildcards)
        # What a job writes beside its output has to stay below the prefix as well.
        is_fine = place.is_below if verb == "write" else place.is_in
        if not any(is_fine(prefix) for prefix in allowed):
            raise ValueError(self._not_allowed(text, verb, [str(prefix) for prefix in allowed]))
        if place.is_local and self._looks:
            try:
                require_within(place, allowed, for_writing=verb == "write", looked=self._looked)
            except ValueError as error:
                raise ValueError(f"{text!r} {error}") from error

    def _not_allowed(self, text: str, verb: str, allowed: Sequence[str]) -> str:
        words = {
            "read": "is in no place that team {team} may read", "write": "is below no place that team {team} may write",
            "import": "is no import that team {team} may make", "models": "is no source of models of team {team}",
            "datasets": "is no source of datasets of team {team}", "tracker": "is no tracker of team {team}",
            "chat": "is no chat server of team {team}",
        }[verb].format(team=repr(self._name))  # fmt: skip
        return (
            f"{text!r} {words} (allowed: {', '.join(allowed) or 'none'}); take one of those, or ask the operator to "
            "add it to the policy"
        )


def require_no_code(job: AnyJob) -> None:
    """Return if looking at the job in this process runs nobody's code: planning builds ``python:`` models.

    Raises:
        ForbiddenError: naming the field.
    """
    for each in _everything(job):
        if each.what == "model" and each.value.startswith("python:"):
            raise ForbiddenError(
                f"{each.field}: {each.value!r} is code, which the service does not run, allowed or not; plan this job "
                "with `headworks plan` where its code may run"
            )


def load_policy(path: str | Path) -> Policy:
    """The policy of a YAML file.

    Raises:
        MissingError: there is no such file. SpecError: it is not a policy; every wrong field is named.
    """
    return read_yaml(path, Policy, "policy")


def _everything(job: AnyJob) -> Iterator[Reached]:
    """What a job reaches, references between the jobs of a pipeline resolved, places that it makes up included."""
    if not isinstance(job, PipelineSpec):
        yield from reached(job)
        return
    yield Reached("output", "write", job.output)
    for index, each in enumerate(job.resolved()):
        yield from reached(each, f"jobs[{index}]")


def _read(text: str, *, said: str, wildcards: bool, within: Place | None = None) -> Place:
    try:
        place = read_place(text, wildcards=wildcards)
    except ValueError as error:
        raise ValueError(f"{said!r} {error}") from error
    if within is not None and not place.is_in(within):
        raise ValueError(f"{said!r} is not below {STDLIB}/")
    return place

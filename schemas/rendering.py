"""``headworks render``: what cluster files need that a job does not know.

Every text that ends in a shell script, a batch directive or a container's command line is held to a pattern here, and
quoted where it is written as well.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from schemas.fields import ByteSize, Duration, Name, Spec, require_no_credentials

Target = Literal["kuberay-job", "kuberay-cluster", "slurm", "ray-up", "docker", "compose"]
"""Which file."""

ClusterName = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$")]
"""Small letters, digits and ``-``, at most 47: KubeRay adds to it, and Kubernetes takes 63."""

KubernetesName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$")]
"""Of a namespace, secret, claim or class."""

OptionalKubernetesName = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?)?$")]
"""The same, or nothing."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.\-]{0,61}[A-Za-z0-9])?"

LabelName = Annotated[str, StringConstraints(pattern=rf"^([a-z0-9.\-]{{1,253}}/)?{_LABEL}$")]
"""Key of a Kubernetes label."""

LabelValue = Annotated[str, StringConstraints(pattern=rf"^({_LABEL})?$")]
"""Value of a Kubernetes label."""

Image = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-/:@]{0,254}$"), AfterValidator(require_no_credentials)
]
"""Name of a container image, with its tag or digest."""

EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""

EnvironmentValue = Annotated[
    str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"), AfterValidator(require_no_credentials)
]
"""One line of printable text."""

SafePath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_.\-/]*[A-Za-z0-9_\-]$")]
"""An absolute path of letters, digits and ``_.-/``."""

OptionalSafePath = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_.\-/]*[A-Za-z0-9_\-])?$")]
"""The same, or nothing."""

HomePath = Annotated[str, StringConstraints(pattern=r"^(~/|/)[A-Za-z0-9_.\-/]*[A-Za-z0-9_\-]$")]
"""An absolute path, or one below the home folder: ``~/...``."""

BatchWord = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:+@\-]*$")]
"""A partition, account, type of GPU and the like."""

OptionalBatchWord = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.,:+@\-]*)?$")]
"""The same, or nothing."""

Directive = Annotated[str, StringConstraints(pattern=r"^--[a-z][a-z\-]*(=[A-Za-z0-9_.,:+@%/\[\]\-]+)?$")]
"""One option of sbatch: ``--constraint=nvme``."""

Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+/\-]*$")]
"""Name of an environment module."""

Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.\-]*[A-Za-z0-9])?$")]
"""A host name or an IPv4 address."""

ClusterUrl = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?(/[A-Za-z0-9_.\-/]*)?$")]
"""Where a dashboard is: ``https://HOST:PORT``."""

UserName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_\-]{0,31}$")]
"""A user of a Unix machine."""


_SECRET = re.compile(r"(^|_)(SECRET|PASSWORD|PASSWD|TOKEN|KEY)(_KEY|_ID)?$")


class Volume(Spec):
    """Storage that all pods share: a claim whose access mode is ReadWriteMany."""

    claim: KubernetesName
    """Name of the PersistentVolumeClaim."""
    path: SafePath
    """Where it is mounted; a job's local paths must be below one of these."""


class Toleration(Spec):
    """A taint that pods accept."""

    key: LabelName
    """Key of the taint."""
    value: LabelValue = ""
    """Its value; empty: any."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Its effect; empty: any."""


class KubernetesSettings(Spec):
    """Targets ``kuberay-job`` and ``kuberay-cluster``."""

    namespace: OptionalKubernetesName = ""
    """Namespace; empty: the one that ``kubectl`` is set to."""
    token_secret: OptionalKubernetesName = ""
    """Secret whose key ``auth_token`` is the cluster's token; empty: the operator makes one of the cluster's name."""
    env_secrets: list[KubernetesName] = []
    """Secrets whose keys become environment variables of every Ray container: ``AWS_ACCESS_KEY_ID``, ``HF_TOKEN``."""
    service_account: OptionalKubernetesName = ""
    """Service account of all pods, which must be there, where the cloud gives rights to storage by it; empty: workers
    have none."""
    volumes: list[Volume] = []
    """Shared storage."""
    cpu_node_selector: dict[LabelName, LabelValue] = {}
    """Labels of the machines for head and CPU workers."""
    gpu_node_selector: dict[LabelName, LabelValue] = {}
    """Labels of the machines with GPUs, such as ``cloud.google.com/gke-accelerator``."""
    gpu_resource: LabelName = "nvidia.com/gpu"
    """Name of a GPU among the resources of a machine."""
    tolerations: list[Toleration] = []
    """Taints that all pods accept; that of ``gpu_resource`` is accepted by GPU workers in any case."""
    scratch_class: OptionalKubernetesName = ""
    """Storage class of local NVMe, of which every worker gets a volume of its own; empty: an ``emptyDir``."""
    autoscaling: bool = True
    """Give back worker pods that idle and start them again when actors wait for room."""
    idle_timeout: Duration = 600
    """How long a pod idles before it is given back; longer than the time in which tokens are made."""
    retries: NonNegativeInt = 3
    """Times that a failed RayJob is tried again, each on a new RayCluster: it goes on from what is committed."""
    keep: Duration = 600
    """How long the cluster of a job that has ended is kept, for its logs."""
    deadline: Duration = 0
    """When a RayJob that has not ended is stopped; 0: never."""
    user_id: PositiveInt = 1000
    """Numeric user and group of the containers."""


class SlurmSettings(Spec):
    """Target ``slurm``."""

    partition: OptionalBatchWord = ""
    """Partition; empty: the default one."""
    account: OptionalBatchWord = ""
    """Account that pays; empty: the user's own."""
    time: Duration = 24 * 3600
    """Time limit. A job that reaches it is put into the queue again and goes on."""
    gpu_type: OptionalBatchWord = ""
    """Type of the GPUs, as in ``--gpus-per-node=TYPE:8``; empty: any."""
    directives: list[Directive] = []
    """Further options of sbatch: ``--constraint=nvme``, ``--qos=long``."""
    modules: list[Module] = []
    """Environment modules to load on every node."""
    venv: OptionalSafePath = ""
    """Virtual environment that has Headworks, on storage that all nodes see; empty: ``ray`` and ``python`` on the
    PATH."""
    folder: OptionalSafePath = ""
    """Folder that all nodes see and only the user can read, for the token and the state of a run; empty:
    ``$HOME/.headworks/slurm``."""
    interface: OptionalBatchWord = ""
    """Network interface of Ray's traffic, such as ``ib0``; empty: that of the node's name."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 6379
    """Port of the head."""
    signal_before: Duration = 120
    """How long before the time limit the job is put into the queue again."""
    max_requeues: NonNegativeInt = 100
    """Times that a job puts itself into the queue again."""
    node_timeout: Duration = 600
    """How long the head waits for all nodes."""


class HostSettings(Spec):
    """Target ``ray-up``: machines that are there."""

    head: Host | None = None
    """Address of the head, as the other machines reach it."""
    workers: list[Host] = []
    """Addresses of the others."""
    user: UserName = "headworks"
    """User of ssh."""
    key: HomePath | None = None
    """Private key of ssh, a file of this machine; None: what ssh's own agent and configuration say."""
    token_file: HomePath = "~/.ray/auth_token"  # noqa: S105 - a path
    """File of this machine with the cluster's token, made by ``ray get-auth-token --generate``."""
    dashboard: Host = "127.0.0.1"
    """Address of the head at which the dashboard listens, and with it the Jobs API: that of the head itself, where the
    service runs on another machine or in a container."""
    venv: OptionalSafePath = ""
    """Virtual environment of the machines that has Headworks; empty: ``ray`` on the PATH."""
    port: Annotated[int, Field(ge=1024, le=65535)] = 6379
    """Port of the head."""


class DockerSettings(Spec):
    """Target ``docker``."""

    variant: Literal["auto", "cpu", "cu126", "cu130", "cu132"] = "auto"
    """Which build of torch. ``auto``: ``cu130`` where the job has workers with GPUs, else ``cpu``."""
    python: Literal["3.11", "3.12", "3.13"] = "3.11"
    """Version of Python."""
    extras: list[Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+$")]] = ["s3", "gcs", "hf", "service", "postgres"]
    """Extras of Headworks to install."""
    user_id: PositiveInt = 1000
    """Numeric user and group that everything runs as."""


class ServiceSettings(Spec):
    """Target ``compose``."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8470
    """Port of the service on this machine."""
    address: Host = "127.0.0.1"
    """Address of this machine that it listens on; a TLS proxy stands before it."""
    postgres: Image = "postgres:17"
    """Image of the database."""
    clusters: Annotated[dict[Name, ClusterUrl], Field(min_length=1)] = {"local": "http://host.docker.internal:8265"}
    """Name -> URL of the dashboard of a cluster that jobs are handed to; ``local``: the Ray of the machine itself. The
    token of each is a file beside the compose file, ``ray-token-NAME``."""


class RenderSettings(Spec):
    """What cluster files need besides the job. Never part of a fingerprint."""

    name: ClusterName | None = None
    """Name of the cluster; None: from the job's."""
    image: Image | None = None
    """Container image with Headworks, made from the file of target ``docker``."""
    nodes: PositiveInt | None = None
    """Machines (pods) with workers; None: as many as the job's workers fill. Needed where ``workers.num_workers`` is 0,
    which takes what there is."""
    workers_per_node: PositiveInt | None = None
    """Processes of the job on one machine; None: one, but all that share a GPU and all of a tensor-parallel group."""
    worker_memory: ByteSize | None = None
    """Memory of one process; None: what ``headworks plan`` finds, times ``memory_margin``."""
    memory_margin: Annotated[float, Field(ge=1)] = 1.25
    """What is asked for, over what is planned."""
    min_cpus: NonNegativeInt = 0
    """CPU cores of a machine with workers, at least."""
    write_rate: ByteSize = 100 * 10**6
    """Bytes per second that a machine can surely write to the storage: decides how long a stopped pod may still write
    what it has."""
    grace: Duration | None = None
    """How long a stopped worker may go on; None: what the objects of the units that it has under way take at
    ``write_rate``."""
    head_cpus: PositiveInt = 2
    """CPU cores of a head that runs no workers."""
    head_memory: ByteSize = 8 * 2**30
    """Memory of a head that runs no workers."""
    scratch: OptionalSafePath = ""
    """Folder on a local NVMe disk of every machine, for Ray's spilled objects and ``HEADWORKS_CACHE``; empty: none, and
    ``/scratch`` in pods, which have a volume of their own there."""
    scratch_size: ByteSize = 100 * 2**30
    """Room there for one worker pod."""
    environment: dict[EnvironmentName, EnvironmentValue] = {}
    """Environment variables of all processes. Never secrets: those come from ``kubernetes.env_secrets`` or the
    machines' own files."""
    kubernetes: KubernetesSettings = KubernetesSettings()
    """KubeRay."""
    slurm: SlurmSettings = SlurmSettings()
    """SLURM."""
    hosts: HostSettings = HostSettings()
    """Plain machines."""
    docker: DockerSettings = DockerSettings()
    """Images."""
    service: ServiceSettings = ServiceSettings()
    """The service."""

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for name in self.environment:
            if _SECRET.search(name.upper()):
                raise ValueError(
                    f"environment.{name} looks like a secret, and rendered files are kept and shared: name a "
                    "Kubernetes Secret in kubernetes.env_secrets, or use the machines' own files (~/.aws/credentials)"
                )
        return self

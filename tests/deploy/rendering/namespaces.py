"""Machines made of Linux namespaces: each has an address, processes, a host name, Ray's folder and /dev/shm of its own.

They share the disk, as machines of a cluster share a file system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# bash stays as process 1 of the machine, where it reaps what Ray leaves.
_ENTER = """#!/bin/bash
node=$1; shift
exec ip netns exec {prefix}$node unshare --mount --pid --fork --kill-child --mount-proc --uts --ipc bash -c '
  node=$1; shift
  hostname "node$node"
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  mkdir -p "${{RAY_TMPDIR:-/tmp}}/ray" "{folder}/ray$node"
  mount --bind "{folder}/ray$node" "${{RAY_TMPDIR:-/tmp}}/ray"
  "$@"
  exit $?' enter "$node" "$@"
"""


def missing() -> str:
    """Why there can be no such machines here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return f"network namespaces need {tool}"
    name = f"hw{os.getpid()}t"
    probe = f"ip netns add {name} && ip netns exec {name} unshare --mount --pid --fork --mount-proc --uts --ipc true"
    found = subprocess.run(["bash", "-c", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return "" if found.returncode == 0 else f"namespaces are not to be had here: {found.stderr.strip()}"


class Machines:
    """``node1``, ``node2``, ... on one network; ``folder``, which must be short, is shared."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self._prefix = f"hw{os.getpid()}-"
        self._bridge = f"hw{os.getpid()}b"
        self._network = f"10.231.{os.getpid() % 250}"
        self.enter = folder / "enter"
        self.enter.write_text(_ENTER.format(prefix=self._prefix, folder=folder))
        self.enter.chmod(0o755)

    def address(self, node: int) -> str:
        return f"{self._network}.{node}"

    def __enter__(self) -> Machines:
        _ip(f"link add {self._bridge} type bridge", f"addr add {self._network}.254/24 dev {self._bridge}")
        _ip(f"link set {self._bridge} up")
        for node in range(1, self.number + 1):
            name, outside = f"{self._prefix}{node}", f"hw{os.getpid()}v{node}"
            _ip(
                f"netns add {name}",
                f"link add {outside} type veth peer name eth0 netns {name}",
                f"link set {outside} master {self._bridge} up",
                f"-n {name} addr add {self.address(node)}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
                f"-n {name} route add default via {self._network}.254",
            )
        return self

    def __exit__(self, *_: object) -> None:
        for node in range(1, self.number + 1):
            subprocess.run(["ip", "netns", "delete", f"{self._prefix}{node}"], check=False)
        subprocess.run(["ip", "link", "delete", self._bridge], check=False)

    def start(self, node: int, script: str, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run a script of bash as the whole life of a machine: when it ends, so do all of its processes."""
        command = [str(self.enter), str(node), "bash", "-c", script]
        with log.open("wb") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)

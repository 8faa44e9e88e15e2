"""Two machines on one: network namespaces with a link between them (Linux, and the right to make them)."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator

import psutil


@dataclasses.dataclass(frozen=True)
class Machine:
    """A network namespace with one end of the link."""

    name: str
    interface: str
    address: str

    @property
    def enter(self) -> tuple[str, ...]:
        """The words in front of a command that is to run on this machine."""
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Take the link down, as if the cable was pulled: the other end hears nothing any more."""
        _ip("-n", self.name, "link", "set", self.interface, "down")


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces that reach each other, and nothing else."""
    number = os.getpid() % 10000
    machines = tuple(Machine(f"relay{number}{end}", f"rl{number}{end}", f"10.99.7.{1 + end}") for end in range(2))
    try:
        for each in machines:
            _ip("netns", "add", each.name)
        first, second = machines
        _ip("link", "add", first.interface, "netns", first.name, "type", "veth", "peer", "name", second.interface,
            "netns", second.name)  # fmt: skip
        for each in machines:
            _ip("-n", each.name, "address", "add", f"{each.address}/24", "dev", each.interface)
            for interface in ("lo", each.interface):
                _ip("-n", each.name, "link", "set", interface, "up")
        yield first, second
    finally:
        for each in machines:
            subprocess.run(["ip", "netns", "delete", each.name], capture_output=True)


def why_not() -> str:
    """Why there cannot be two machines here; empty where there can."""
    if shutil.which("ip") is None:
        return "there is no program ip"
    try:
        with two_machines():
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted ({error.stderr.decode().strip()})"


def programs_below(pid: int) -> list[psutil.Process]:
    """The trainings that a launcher has started, without the launcher."""
    return [each for each in psutil.Process(pid).children(recursive=True) if "runner" in each.cmdline()]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

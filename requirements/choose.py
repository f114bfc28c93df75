"""Print the lock that fits this Python and this system's C library; say on stderr what the choice leaves out."""

import platform
import sys

VERSIONS = ("3.11", "3.12", "3.13")
TFDV_GLIBC = {"3.11": (2, 28), "3.12": (2, 39), "3.13": (2, 39)}  # the oldest glibc that TFDV's wheels run on


def choose(version: str, system: str, machine: str, glibc: tuple[int, ...]) -> tuple[str, str]:
    """The name of a lock, and why it is without TFDV, if it is."""
    if version not in VERSIONS:
        raise SystemExit(f"headrace needs Python {', '.join(VERSIONS)}, not {version}: make PYTHON=python3.11")
    if (system, machine) != ("Linux", "x86_64"):
        return "core", f"TFDV has no wheels for {system} on {machine}"
    oldest = TFDV_GLIBC[version]
    if glibc < oldest:
        needed, there = (".".join(map(str, v)) for v in (oldest, glibc))
        return "core", f"TFDV's wheels for Python {version} need glibc {needed}, here is {there or 'another C library'}"
    return "py" + version.replace(".", ""), ""


def main() -> None:
    """Choose for the Python that runs this."""
    name, numbers = platform.libc_ver()
    glibc = tuple(int(n) for n in numbers.split(".")) if name == "glibc" else ()
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    lock, why = choose(version, platform.system(), platform.machine(), glibc)
    if why:
        print(f"Installing without TFDV: {why}. `headrace schema infer` and TFDV's checks are off.", file=sys.stderr)
    print(f"requirements/locks/{lock}.txt")


if __name__ == "__main__":
    main()

"""Launcher of `sandbox.run_program`, in a process of its own: drops the rights that a program must not have, runs it.

    python -I -S sandbox_launcher.py namespaces|limits FOLDER CPU_SECONDS MEMORY DISK PROCESSES

It imports only the standard library. If a step fails, it exits with a line on stderr and the program does not run.
"""

import ctypes
import os
import resource
import signal
import sys

PROGRAM = "program.py"
PYTHON = "/proc/python"  # mount point of root's Python
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 27, 1 << 28, 1 << 29, 1 << 30
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 1 << 12, 1 << 14, 1 << 18
MOUNT_ATTR_RDONLY, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 1, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NOBODY = 64_123  # user id that root changes to: of no account, so that its processes can be counted
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# Runs before the program where the kernel does not confine it: refuses all that a program does not need.
GUARD = """
def _guard():
    import os, sys
    home = os.path.realpath(os.getcwd())
    refused = {"fork", "forkpty", "posix_spawn", "spawn", "exec", "system", "startfile", "kill", "killpg"}
    changes = {"remove", "rename", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "chown", "utime"}

    def outside(path):
        if isinstance(path, int):
            return False
        path = os.path.realpath(os.fsdecode(path))
        return not (path == home or path.startswith(home + os.sep) or path == os.devnull)

    def hook(event, args):
        kind, _, name = event.partition(".")
        if kind == "socket" or event == "subprocess.Popen" or (kind in ("os", "signal") and name in refused):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if outside(args[0]):
                raise PermissionError("writing outside the program's folder is not allowed here")
        if kind in ("os", "shutil") and name in changes:
            if any(outside(path) for path in args if isinstance(path, (str, bytes, os.PathLike))):
                raise PermissionError(f"{event} outside the program's folder is not allowed here")
        if event == "open" and isinstance(args[0], (str, bytes)):
            if os.path.realpath(os.fsdecode(args[0])).startswith("/proc/"):
                raise PermissionError("/proc is not to be read here")

    sys.addaudithook(hook)


_guard()
del _guard
import sys as _sys
_sys.argv = ["program.py"]
exec(compile(open("program.py", encoding="utf-8").read(), "program.py", "exec"), {"__name__": "__main__"})
"""


def main() -> None:
    """Drop rights and run the program, in this process or in a child."""
    way, folder = sys.argv[1:3]
    cpu_seconds, memory, disk, processes = (int(text) for text in sys.argv[3:])
    python, start, environment = sys.executable, ["-c", GUARD], ENVIRONMENT | {"HOME": folder, "TMPDIR": folder}
    if way == "namespaces":
        with open(os.path.join(folder, PROGRAM), "rb") as file:
            code = file.read()
        is_root = os.geteuid() == 0
        enter_namespaces(is_root)
        hand_on()  # to the first process of the namespace: all others die with it
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        hand_on()  # to another one: the first ignores most signals, those of the limits too
        python = close_file_system(folder, disk, is_root)
        start = [PROGRAM]
        os.chdir(folder)
        with open(PROGRAM, "wb") as file:
            file.write(code)
        os.chmod(PROGRAM, 0o444)
        if is_root:  # its limit on processes is never enforced
            environment["LD_LIBRARY_PATH"] = f"{PYTHON}/lib"  # a libpython named by its path cannot be reached
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        else:
            processes += 2  # the waiting processes count as this user's too
    limit(cpu_seconds, memory, disk, processes)
    if libc:
        check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    os.execve(python, [python, "-I", "-B", *start], environment)


# None on other systems, which have no namespaces. (`Any` would import `typing`, for every program.)
libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None  # type: ignore[assignment]


def check(result: int, what: str) -> None:
    """Raise OSError for a C call that failed."""
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def hand_on() -> None:
    """Continue in a child; this process waits for it and ends with its exit code."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def enter_namespaces(is_root: bool) -> None:
    """Make network, process, mount and IPC namespaces; an ordinary user makes them within a user namespace."""
    kinds = CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(kinds if is_root else kinds | CLONE_NEWUSER), "unshare")
    if not is_root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def close_file_system(folder: str, disk: int, is_root: bool) -> str:
    """Make the file system read-only and /proc empty, with a RAM disk of `disk` bytes over the program's folder.

    Returns:
        The path of Python: root's own may be in a folder that only root can read, so it is mounted in /proc.
    """

    def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        texts = (text.encode() for text in (source, target, kind))
        check(libc.mount(*texts, ctypes.c_ulong(flags), options.encode()), f"mount {target}")

    mount("none", "/", "none", MS_REC | MS_PRIVATE)
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr: set, clear, propagation, user
    sizes = ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes))
    check(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, *sizes), "mount_setattr")
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk},nr_inodes=1024,mode=777")
    mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=755")
    python = sys.executable
    if is_root:
        os.mkdir(PYTHON)
        mount(sys.base_prefix, PYTHON, "none", MS_BIND | MS_REC)
        python = os.path.join(PYTHON, os.path.relpath(python, sys.base_prefix))
    return python


def limit(cpu_seconds: int, memory: int, disk: int, processes: int) -> None:
    """Set the kernel's limits for this process and its children; no core files."""
    for name, soft, hard in (
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_CPU", cpu_seconds, cpu_seconds + 1),
        ("RLIMIT_AS", memory, memory),
        ("RLIMIT_FSIZE", disk, disk),
        ("RLIMIT_NOFILE", 64, 64),
        ("RLIMIT_NPROC", processes, processes),
    ):
        resource.setrlimit(getattr(resource, name), (soft, hard))


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"the sandbox could not be set up: {error}", file=sys.stderr)
        sys.exit(125)

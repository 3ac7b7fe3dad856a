"""Programs of all kinds whose status and output are the same on every layer, as data.

`plain` says that Python without a sandbox gives the same output and exit status too.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluate.sandbox.spec import Limits

LIMITS = Limits(
    wall_seconds=4, cpu_seconds=2, memory_bytes=512 << 20, output_bytes=20_000, file_bytes=1 << 20, files=50
)
STDIN = "one\ntwo\n"


@dataclass(frozen=True)
class SandboxedProgram:
    name: str
    code: str
    stdout: str = ""
    status: str = "ok"
    limit: str = ""
    plain: bool = True


def _file_call(name: str, statement: str) -> SandboxedProgram:
    code = f"import os, pathlib, shutil, sys\nopen('a', 'w').write('x')\nos.mkdir('d')\n{statement}\nprint('done')"
    return SandboxedProgram(name, code, "done\n")


def _denied(name: str, statement: str) -> SandboxedProgram:
    """A program that the sandbox refuses; the type of the error is printed."""
    code = f"import os, socket, subprocess, multiprocessing\ntry:\n    {statement}\n"
    return SandboxedProgram(name, f"{code}except OSError as error:\n    print(error.errno)", "1\n", plain=False)


STDIN_NAMES = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/proc/thread-self/fd/0")
STDOUT_NAMES = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1")
STDERR_NAMES = ("/dev/stderr", "/dev/fd/2", "/proc/self/fd/2")

STREAMS = (
    *(
        SandboxedProgram(f"open {name}", f"print(open({name!r}).read().split())", "['one', 'two']\n")
        for name in STDIN_NAMES
    ),
    *(
        SandboxedProgram(f"{mode} {name}", f"with open({name!r}, {mode!r}) as f: f.write('text')", "text")
        for name in STDOUT_NAMES
        for mode in ("w", "a")
    ),
    *(SandboxedProgram(f"w {name}", f"with open({name!r}, 'w') as f: f.write('text')") for name in STDERR_NAMES),
    SandboxedProgram("bytes of /dev/stdin", "print(open('/dev/stdin', 'rb').read())", "b'one\\ntwo\\n'\n"),
    SandboxedProgram(
        "pathlib of /dev/stdin", "import pathlib\nprint(pathlib.Path('/dev/stdin').read_text(), end='')", STDIN
    ),
    SandboxedProgram(
        "os.open of /dev/stdin", "import os\nprint(os.read(os.open('/dev/stdin', os.O_RDONLY), 3))", "b'one'\n"
    ),
    SandboxedProgram(
        "fileinput of /dev/stdin",
        "import fileinput\nfor line in fileinput.input('/dev/stdin'): print(len(line))",
        "4\n4\n",
    ),
    SandboxedProgram("numpy of /dev/stdin", "import numpy\nprint(numpy.loadtxt('/dev/stdin', dtype=str)[1])", "two\n"),
    SandboxedProgram("path of the process", "import os\nprint(open(f'/proc/{os.getpid()}/fd/0').read(3))", "one\n"),
    SandboxedProgram(
        "sys.stdin = open", "import sys\nsys.stdin = open('/dev/stdin')\nprint(input(), input())", "one two\n"
    ),
    SandboxedProgram("open(0) and open(1)", "open(1, 'w').write(open(0).read())", STDIN),
    SandboxedProgram("os.fdopen", "import os\nos.fdopen(1, 'w').write(os.fdopen(0).readline())", "one\n"),
    SandboxedProgram("redirected stdout", "import sys\nsys.stdout = open('/dev/stdout', 'w')\nprint(input())", "one\n"),
    SandboxedProgram(
        "existence", "import os\nprint(os.path.exists('/dev/stdin'), os.path.exists('/dev/stdout'))", "True True\n"
    ),
    SandboxedProgram(
        "environment",
        "import os\nprint(len(os.environ), sorted(set(os.environ) & {'PATH', 'PWD', 'HOME', 'TMPDIR', 'LANG', 'TZ'}))",
        "9 ['HOME', 'LANG', 'TMPDIR', 'TZ']\n",
        plain=False,
    ),
    SandboxedProgram("isatty", "import sys\nprint(sys.stdin.isatty(), sys.stdout.isatty())", "False False\n"),
    SandboxedProgram("seek of stdin", "import sys\nsys.stdin.read()\nsys.stdin.seek(0)\nprint(input())", "one\n"),
    SandboxedProgram("mmap of stdin", "import mmap\nprint(mmap.mmap(0, 0, prot=mmap.PROT_READ)[:3])", "b'one'\n"),
    SandboxedProgram("select of stdin", "import select\nprint(len(select.select([0], [], [], 1)[0]))", "1\n"),
    SandboxedProgram("to the end of input", "print(input(), input())\ninput()", "one two\n", "error"),
    SandboxedProgram("/dev/null", "open('/dev/null', 'w').write('x')\nprint(repr(open('/dev/null').read()))", "''\n"),
    SandboxedProgram(
        "/dev/zero", "f = open('/dev/zero', 'r+b', 0)\nprint(f.write(b'x'), f.read(2))", "1 b'\\x00\\x00'\n"
    ),
    SandboxedProgram(
        "/dev/full",
        "try:\n    open('/dev/full', 'wb', 0).write(b'x')\nexcept OSError as error: print(error.errno)",
        "28\n",
    ),
    SandboxedProgram("/dev/urandom", "print(len(open('/dev/urandom', 'rb').read(8)))", "8\n"),
)

FILES = (
    _file_call("shutil.copy", "shutil.copy('a', 'b')"),
    _file_call("shutil.copy2", "shutil.copy2('a', 'b')"),
    _file_call("shutil.copyfile", "shutil.copyfile('a', 'b')"),
    _file_call("shutil.copymode", "shutil.copymode('a', 'd')"),
    _file_call("shutil.copystat", "shutil.copystat('a', 'd')"),
    _file_call("shutil.copytree", "shutil.copytree('d', 'e')\nshutil.rmtree('e')"),
    _file_call("shutil.move", "shutil.move('a', 'd')"),
    _file_call("shutil.make_archive", "shutil.make_archive('z', 'zip', 'd')"),
    _file_call("zipfile", "import zipfile\nzipfile.ZipFile('z', 'w').write('a')\nzipfile.ZipFile('z').extractall('d')"),
    _file_call(
        "tarfile", "import tarfile\nwith tarfile.open('t', 'w') as t: t.add('a')\ntarfile.open('t').extractall('d')"
    ),
    _file_call("os.chmod", "os.chmod('a', 0o600)"),
    _file_call("os.fchmod", "f = open('a')\nos.fchmod(f.fileno(), 0o644)"),
    _file_call("os.chmod by descriptor", "f = open('a')\nos.chmod(f.fileno(), 0o644)"),
    _file_call("Path.chmod", "pathlib.Path('a').chmod(0o644)"),
    _file_call("Path.touch", "pathlib.Path('a').touch()\npathlib.Path('new').touch()"),
    _file_call("os.utime", "os.utime('a')\nos.utime('a', (1, 2))\nos.utime('a', ns=(1, 2))"),
    _file_call("os.chown", "os.chown('a', os.getuid(), os.getgid())\nos.chown('a', -1, -1)"),
    _file_call("os.umask", "os.umask(os.umask(0))"),
    _file_call("os.replace", "os.replace('a', 'd/b')"),
    _file_call("os.scandir", "assert sorted(e.name for e in os.scandir('.')) == ['a', 'd']"),
    _file_call("os.walk", "assert [len(files) for _, _, files in os.walk('.')] == [1, 0]"),
    _file_call("glob", "import glob\nassert glob.glob('*') and glob.glob('**', recursive=True)"),
    _file_call(
        "flock", "import fcntl\nf = open('a', 'a')\nfcntl.flock(f, fcntl.LOCK_EX)\nfcntl.lockf(f, fcntl.LOCK_UN)"
    ),
    _file_call("truncate", "with open('a', 'r+') as f: f.truncate(0)\nassert os.path.getsize('a') == 0"),
    _file_call(
        "mmap of a file", "import mmap\nf = open('a', 'r+b')\nmmap.mmap(f.fileno(), 1)[0] = 65\nassert f.read() == b'A'"
    ),
    _file_call(
        "deleted while open", "f = open('a', 'r+')\nos.remove('a')\nf.write('y')\nf.seek(0)\nassert f.read() == 'y'"
    ),
    _file_call("sqlite3", "import sqlite3\nd = sqlite3.connect('q')\nd.execute('create table t(x)')\nd.commit()"),
    _file_call("shelve", "import shelve\nwith shelve.open('s') as s: s['k'] = 1"),
    _file_call("logging to a file", "import logging\nlogging.basicConfig(filename='l')\nlogging.error('x')"),
    _file_call("tempfile", "import tempfile\nwith tempfile.TemporaryDirectory() as t: open(t + '/x', 'w').close()"),
    _file_call("os.sendfile", "f = open('a')\nos.sendfile(os.open('b', 65), f.fileno(), 0, 1)"),
    _file_call("os.copy_file_range", "f = open('a')\nos.copy_file_range(f.fileno(), os.open('b', 65), 1)"),
    _file_call("os.preadv", "f = open('a')\nos.preadv(f.fileno(), [bytearray(1)], 0)"),
    SandboxedProgram("missing file", "open('missing')", "", "error"),
    SandboxedProgram("file twice", "import os\nos.mkdir('d')\nos.mkdir('d')", "", "error"),
    SandboxedProgram(
        "too large a file", "open('a', 'w').write('x' * (2 << 20))", "", "output", "1 MB of files", plain=False
    ),
    SandboxedProgram(
        "too many bytes in all",
        "for at in range(9): open(str(at), 'w').write('x' * 300_000)",
        status="output",
        limit="1 MB of files",
        plain=False,
    ),
    SandboxedProgram(
        "written and deleted again and again",
        "import os\nfor _ in range(50):\n    with open('a', 'w') as f: f.write('x' * 500_000)\n"
        "    os.remove('a')\nprint(1)",
        "1\n",
    ),
    SandboxedProgram(
        "deleted and kept open",
        """
import os, time
kept = []
for _ in range(50):
    kept.append(open("a", "wb", 0))
    os.remove("a")
    kept[-1].write(bytes(500_000))
    time.sleep(0.03)
""",
        status="output",
        limit="1 MB of files",
        plain=False,
    ),
    SandboxedProgram(
        "deleted and kept in memory",
        """
import mmap, os, time
kept = []
for _ in range(50):
    with open("a", "w+b") as file:
        os.remove("a")
        file.write(bytes(500_000))
        file.flush()
        kept.append(mmap.mmap(file.fileno(), 4096))
    time.sleep(0.03)
""",
        status="output",
        limit="1 MB of files",
        plain=False,
    ),
)

THREADS = (
    SandboxedProgram(
        "pool of 40 threads",
        """
import threading
from concurrent.futures import ThreadPoolExecutor
meeting = threading.Barrier(40)
with ThreadPoolExecutor(40) as pool:
    print(len(list(pool.map(lambda _: meeting.wait(), range(40)))))
""",
        "40\n",
    ),
    SandboxedProgram(
        "100 threads",
        "import threading, time\nts = [threading.Thread(target=time.sleep, args=(0.2,)) for _ in range(100)]\n"
        "for t in ts: t.start()\nprint(threading.active_count())",
        "101\n",
    ),
    SandboxedProgram(
        "thread that raises",
        "import threading\nt = threading.Thread(target=int, args=('x',))\nt.start()\nt.join()\nprint(1)",
        "1\n",
    ),
    SandboxedProgram(
        "daemon thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    ),
    SandboxedProgram("timer", "import threading\nthreading.Timer(0.01, print, ('rang',)).start()", "rang\n"),
    SandboxedProgram(
        "asyncio",
        "import asyncio\nasync def f(): return await asyncio.to_thread(int, '7')\nprint(asyncio.run(f()))",
        "7\n",
    ),
    *(
        SandboxedProgram(
            f"recursion in a thread with a stack of {size >> 20} MB",
            f"""
import sys, threading
sys.setrecursionlimit(10 ** 9 // 2)
threading.stack_size({size})
def f(n): return 0 if n == 0 else 1 + max([f(n - 1)])
thread = threading.Thread(target=lambda: print(f(50_000)))
thread.start()
thread.join()
""",
            "50000\n",
        )
        for size in (1 << 26, 1 << 27, 1 << 28, 1 << 29)
    ),
    *(
        SandboxedProgram(
            f"recursion after setrlimit {limit}",
            f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_STACK, {limit})
sys.setrecursionlimit(10 ** 6)
def f(n): return 0 if n == 0 else 1 + max([f(n - 1)])
print(f(50_000))
""",
            "50000\n",
        )
        for limit in (
            "(resource.RLIM_INFINITY,) * 2",
            "(-1, -1)",
            "[0x10000000, resource.RLIM_INFINITY]",
            "(2 ** 29, -1)",
        )
    ),
    SandboxedProgram("recursion too deep", "def f(): f()\nf()", status="error"),
)

PROCESSES = (
    _denied("os.fork", "os.fork()"),
    _denied("subprocess", "subprocess.run(['true'])"),
    _denied("os.execv", "os.execv('/bin/true', ['true'])"),
    _denied("multiprocessing.Process", "multiprocessing.Process(target=print).start()"),
    _denied("socket", "socket.socket()"),
    _denied("kill process 1", "os.kill(1, 0)"),
    _denied("getpgid", "os.getpgid(os.getppid() or 1)"),
    _denied("getsid", "os.getsid(os.getppid() or 1)"),
    _denied("sched_getaffinity", "os.sched_getaffinity(os.getppid() or 1)"),
    _denied("getpriority", "os.getpriority(os.PRIO_PROCESS, os.getppid() or 1)"),
    _denied("getpriority of a user", "os.getpriority(os.PRIO_USER, 0)"),
    _denied("nice", "os.nice(1)"),
    _denied("symlink", "os.symlink('a', 'b')"),
    *(
        SandboxedProgram(
            f"multiprocessing.{name}",
            f"import multiprocessing\ntry:\n    multiprocessing.{name}\nexcept OSError as error: print(error.errno)",
            "13\n",
            plain=False,
        )
        for name in ("Pool(2)", "Lock()", "Queue()", "Value('i')")
    ),
    SandboxedProgram(
        "ProcessPoolExecutor",
        "from concurrent.futures import ProcessPoolExecutor\n"
        "with ProcessPoolExecutor(2) as pool: print(list(pool.map(abs, [-1])))",
        status="error",
        plain=False,
    ),
    SandboxedProgram("os.system", "import os\nprint(os.system('true'))", "32512\n", plain=False),
    SandboxedProgram(
        "of itself",
        "import os\np = os.getpid()\nprint(os.getpgid(0) == os.getpgid(p), os.getsid(0) == os.getsid(p),"
        " os.sched_getaffinity(0) == os.sched_getaffinity(p), os.getpriority(0, 0) == os.getpriority(0, p))",
        "True True True True\n",
    ),
    SandboxedProgram(
        "clocks",
        "from time import monotonic, perf_counter, process_time, thread_time, time\n"
        "print([f() > 0 for f in (time, monotonic, perf_counter, process_time, thread_time)])",
        "[True, True, True, True, True]\n",
    ),
    SandboxedProgram(
        "clock of another process",
        "import os, time\ntry: time.clock_gettime((~os.getppid() << 3) | 2)\n"
        "except OSError as error: print(error.errno)",
        "22\n",
        plain=False,
    ),
)

ENDINGS = (
    SandboxedProgram("sys.exit(0)", "import sys\nsys.exit(0)"),
    SandboxedProgram("sys.exit()", "import sys\nprint(1)\nsys.exit()", "1\n"),
    *(
        SandboxedProgram(f"sys.exit({n})", f"import sys\nsys.exit({n})", status="error")
        for n in (1, 2, 97, 98, 128, 137, 139, 255)
    ),
    *(
        SandboxedProgram(f"os._exit({n})", f"import os\nos._exit({n})", status="error")
        for n in (1, 97, 98, 137, 139, 255)
    ),
    SandboxedProgram("os._exit(0)", "import os\nprint(1, flush=True)\nos._exit(0)", "1\n"),
    SandboxedProgram("exit with a text", "import sys\nsys.exit('no')", status="error"),
    SandboxedProgram("exception", "print(1)\nraise KeyError(1)", "1\n", "error"),
    SandboxedProgram("syntax error", "x = = 1", status="error"),
    SandboxedProgram("KeyboardInterrupt", "raise KeyboardInterrupt", status="error", plain=False),
    SandboxedProgram("assertion", "assert 1 == 2", status="error"),
    *(
        SandboxedProgram(
            f"signal {name}", f"import os, signal\nos.kill(os.getpid(), signal.{name})", "", "killed", f"signal {name}"
        )
        for name in ("SIGTERM", "SIGKILL", "SIGABRT", "SIGSEGV", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGFPE")
    ),
    SandboxedProgram("abort", "import os\nos.abort()", "", "killed", "signal SIGABRT"),
    SandboxedProgram("crash", "import ctypes\nctypes.string_at(0)", "", "killed", "signal SIGSEGV"),
    SandboxedProgram("alarm", "import signal, time\nsignal.alarm(1)\ntime.sleep(3)", "", "killed", "signal SIGALRM"),
    SandboxedProgram(
        "handled signal",
        "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: print('heard'))\nos.kill(os.getpid(), 15)",
        "heard\n",
    ),
    SandboxedProgram(
        "timeout by an alarm",
        "import signal\ndef ring(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, ring)\n"
        "try:\n    signal.setitimer(0, 0.1)\n    while True: pass\nexcept TimeoutError: print('late')",
        "late\n",
    ),
    SandboxedProgram("sleep", "import time\ntime.sleep(60)", "", "timeout", "4 s of time", plain=False),
    SandboxedProgram(
        "many short sleeps", "import time\nwhile True: time.sleep(0.001)", "", "timeout", "4 s of time", plain=False
    ),
    SandboxedProgram("stop", "import os\nos.kill(os.getpid(), 19)", "", "timeout", "4 s of time", plain=False),
    SandboxedProgram("endless loop", "while True: pass", "", "timeout", "2 s of processor time", plain=False),
    SandboxedProgram(
        "endless loops in threads",
        "import threading\ndef f():\n    while True: pass\nfor _ in range(4): threading.Thread(target=f).start()",
        "",
        "timeout",
        "2 s of processor time",
        plain=False,
    ),
    SandboxedProgram(
        "endless loop without its signal",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "",
        "timeout",
        "2 s of processor time",
        plain=False,
    ),
    SandboxedProgram("too much memory", "x = bytearray(1 << 30)", "", "memory", "512 MB of memory", plain=False),
    SandboxedProgram(
        "too much memory in the end",
        "x = []\nwhile True: x.append(bytes(1 << 20))",
        "",
        "memory",
        "512 MB of memory",
        plain=False,
    ),
    SandboxedProgram(
        "memory error that is caught", "try:\n    x = bytearray(1 << 40)\nexcept MemoryError: print('no')", "no\n"
    ),
    SandboxedProgram("400 MB", "x = bytearray(400 << 20)\nprint(len(x))", "419430400\n"),
    SandboxedProgram("big output", "print('x' * 19_000)", "x" * 19_000 + "\n"),
    SandboxedProgram(
        "too much output", "print('x' * 30_000)", "x" * 20_000, "output", "19.5 kB of output", plain=False
    ),
    SandboxedProgram(
        "output at the end", "import atexit\natexit.register(print, 'last')\nprint('first')", "first\nlast\n"
    ),
    SandboxedProgram("closed output", "import sys\nprint('first', flush=True)\nsys.stdout.close()", "first\n"),
    SandboxedProgram("too many files", "x = [open('/dev/null') for _ in range(100)]", "", "error", plain=False),
)

PROGRAMS = (*STREAMS, *FILES, *THREADS, *PROCESSES, *ENDINGS)

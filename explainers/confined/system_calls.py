"""What a sandboxed process may not ask of the kernel: a filter of system calls (seccomp), for itself and for good.

Refused are sockets, other programs and processes, signals and looks into other processes, changes to the file system
(opening a file for writing among them), and the ways around such a filter. The calls and their numbers are those of
Linux on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl); on other machines, and where the kernel has no such filters,
`restrict` does nothing and says so: the limits of `sandbox` hold there alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

NO_NEW_PRIVILEGES, SET_FILTER, FILTER = 38, 22, 2  # of prctl(2)
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of linux/bpf_common.h
ALLOWED, REFUSED, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026  # go on; EPERM; ENOSYS
NUMBER, MACHINE, SECOND_ARGUMENT, THIRD_ARGUMENT, FIRST_ARGUMENT = 0, 4, 24, 32, 16  # of seccomp_data
X86_64, X32 = 0xC000003E, 0x40000000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
THREAD = 0x10000  # CLONE_THREAD
OPEN, OPEN_AT, CLONE = 2, 257, 56
CLONE3, OPEN_AT2 = 435, 437
"""Their flags lie in memory, where a filter sees nothing: libraries fall back to the older calls."""

DENIED = (
    *(41, 53),  # socket, socketpair
    *(57, 58, 59, 322),  # fork, vfork, execve, execveat
    *(62, 129, 297, 424, 434),  # kill, sigqueueinfo, tgsigqueueinfo, pidfd_send_signal, pidfd_open
    *(101, 310, 311, 438, 298),  # ptrace, process_vm_readv and _writev, pidfd_getfd, perf_event_open
    *(76, 77, 82, 83, 84, 85, 86, 87, 88, 133),  # truncate, ftruncate, rename, mkdir, rmdir, creat, link, ..., mknod
    *(258, 259, 263, 264, 265, 266, 316),  # the same with a folder named
    *(90, 91, 92, 93, 94, 132, 188, 189, 190, 235, 260, 268, 280, 452),  # chmod, chown, utimes, setxattr
    *(155, 161, 165, 166, 167, 169, 175, 246, 272, 308, 313, 320),  # mounts, modules, reboot, namespaces
    *(248, 249, 250, 321, 323, 425, 426, 427),  # keys, bpf, userfaultfd, io_uring
    *(428, 429, 430, 431, 432, 442),  # the newer calls of mounts
)


def restrict() -> bool:
    """Whether the filter is in force from now on, in this thread and those that it starts."""
    if platform.machine() != "x86_64":
        return False
    program = _program()
    code = ctypes.create_string_buffer(program)
    pointer = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)))
    control = ctypes.CDLL(None, use_errno=True).prctl
    control.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if control(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return False
    return bool(control(SET_FILTER, FILTER, ctypes.addressof(pointer), 0, 0) == 0)


def _program() -> bytes:
    """Instructions of a classic BPF filter: each 8 bytes, jumps relative to the next one."""
    lines = [
        (LOAD, 0, 0, MACHINE),
        (EQUAL, 1, 0, X86_64),
        (RETURN, 0, 0, REFUSED),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSED),
    ]
    for number in DENIED:
        lines += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSED)]
    for number in (CLONE3, OPEN_AT2):
        lines += [(EQUAL, 0, 1, number), (RETURN, 0, 0, UNKNOWN)]
    for number, argument in ((OPEN, SECOND_ARGUMENT), (OPEN_AT, THIRD_ARGUMENT)):
        lines += [(EQUAL, 0, 4, number), (LOAD, 0, 0, argument), (ANY_BIT, 0, 1, WRITING)]
        lines += [(RETURN, 0, 0, REFUSED), (RETURN, 0, 0, ALLOWED)]
    lines += [(EQUAL, 0, 4, CLONE), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 1, 0, THREAD)]
    lines += [(RETURN, 0, 0, REFUSED), (RETURN, 0, 0, ALLOWED)]
    return b"".join(struct.pack("HBBI", *line) for line in [*lines, (RETURN, 0, 0, ALLOWED)])

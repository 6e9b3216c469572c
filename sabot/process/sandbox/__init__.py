"""The sandbox of a child process: files and network. Memory and processor time are limited by `process/limits`.

- `levels`: the levels of trust, and the kernel's means that enforce them on this system.
- `reach`: finds the files, folders, ports and sockets to which a sandboxed program gets access.
- `paths`: resolves the paths that a sandbox names, and refuses symbolic links that a sandboxed program may have made.
- `confine`: confines the process between fork and exec.
- `seccomp`: the filter of system calls.
"""

"""
What `test_processes.py` runs on four processes of two nodes, which are two on this machine that count their processes
for themselves; forked, as each would be long in importing:

    python tests/distributed/four_processes.py FOLDER CASE ...
"""

import os
import socket
import sys

if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    import torch
    import two_processes

    torch.set_num_threads(1)
    processes = []
    for rank in range(4):
        process = os.fork()
        if process == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % 2)}
            ended = 1
            try:
                two_processes.run(sys.argv[1], sys.argv[2:])
                ended = 0
            finally:
                sys.stderr.flush()
                os._exit(ended)
        processes.append(process)
    ended = [os.waitpid(process, 0)[1] for process in processes]
    sys.exit(any(ended))

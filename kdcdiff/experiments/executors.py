"""Where independent stages run, if not in the local pool: in a cluster's queue, by submitit, as a file says.

    cluster: slurm          # or local: processes of submitit's on this machine
    timeout_min: 240        # of a stage
    gpus_per_node: 1
    slurm_partition: gpu    # this, and anything else that submitit's AutoExecutor takes

`kdcdiff run --executor book/executors/slurm.yaml` names such a file, and the variable `EXECUTOR` hands its name on to
the notebooks' kernels. Jobs meet in the store, which must lie where every machine sees it. Does not import torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import yaml

from kdcdiff.errors import UserError, check

EXECUTOR = "KDCDIFF_EXECUTOR"  # the variable that names the file of parameters; without it there is the local pool
POLL = {"slurm": 10.0, "local": 0.2}  # of submitit's executors: seconds between looks at the queue
MISSING = "needs submitit, which is not installed: pip install 'kdcdiff[slurm]'"
LOST = "ended without a result (killed, or out of time or memory); what was finished is kept, so run it again"


def use_executor(file: str | Path) -> Path:
    """Let this process and all that it starts send independent stages where `file` says, and return its path.

    UserError: no such file, no such cluster, or submitit is not installed.
    """
    path = Path(file).expanduser().resolve()
    read_executor(path)
    os.environ[EXECUTOR] = str(path)
    return path


def read_executor(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a file of parameters: the cluster, and what its executor is told."""
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"executor={str(path)!r}: cannot be read as YAML ({type(error).__name__})") from None
    check(isinstance(told, dict), "executor", str(path), "must hold parameters, as `cluster: slurm`")
    cluster = told.pop("cluster", None)
    check(cluster in POLL, "cluster", cluster, f"must be one of {', '.join(POLL)}")
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(f"executor={str(path)!r}: {MISSING}") from None
    return cluster, told


def submitted(path: Path, folder: Path, work: Callable[..., str], calls: Iterable[tuple[Any, ...]]) -> Generator[str]:
    """Submit `work(*call)` for each of `calls`; yield what each returns, as they end.

    Jobs meet in `folder`, which holds their logs and goes when all have ended well. UserError: the queue refuses, or a
    job ended without a result. Whatever ends the iteration early cancels the rest.
    """
    cluster, told = read_executor(path)

    import submitit
    from submitit.core.utils import FailedJobError, UncompletedJobError
    from submitit.helpers import as_completed

    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**told)
        with executor.batch():  # an array of jobs, where the cluster has such
            jobs = [executor.submit(work, *call) for call in calls]
    except Exception as error:  # submitit's checks, and whatever a queue says
        raise UserError(f"executor={str(path)!r}: {cluster} takes no jobs ({error})") from None
    try:
        for job in as_completed(jobs, poll_frequency=POLL[cluster]):
            try:
                yield job.result()
            except FailedJobError:
                raise  # a fault of the program, with its traceback
            except UncompletedJobError:
                raise UserError(f"job {job.job_id} {LOST}; its log: {job.paths.stderr}") from None
        shutil.rmtree(folder)
    finally:
        for job in jobs:
            if not job.done():
                job.cancel(check=False)

"""One training process or many: who am I, and what the processes do together.

Several processes are started by `torchrun --nproc-per-node=N train_policy.py ...`. accelerate sets up the process
group, the devices and DistributedDataParallel. Sharding calls PyTorch's `fully_shard` itself: accelerate's own FSDP2
silently becomes plain data parallelism on CPUs, where the tests run.
"""

import atexit
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drift_policy.errors import ConfigurationError, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# The others wait this long while the first process rolls a policy out or loads data.
_PATIENCE = timedelta(hours=2)


class Processes:
    """The processes of a run, seen from one of them.

    Args:
        device: of this process.
        accelerator: of several processes; None for one.
        sharding: "none" copies weights to each process (DDP), "fsdp2" splits them.
    """

    def __init__(self, device: torch.device, accelerator: "Accelerator | None" = None, sharding: str = "none") -> None:
        self._accelerator = accelerator
        self.device = device if accelerator is None else accelerator.device
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.size = 1 if accelerator is None else accelerator.num_processes
        self.is_sharded = sharding == "fsdp2"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module as the processes train it together; with sharding its parameters become shards."""
        if self._accelerator is None:
            return module
        if self.is_sharded:
            return _shard(module)
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def without_sync(self, module: nn.Module, active: bool) -> AbstractContextManager[None]:
        """Let the gradients of a part of a step stay on this process, if `active`."""
        if self._accelerator is None or not active:
            return nullcontext()
        if self.is_sharded:
            return _fsdp_without_sync(module)
        context: AbstractContextManager[None] = self._accelerator.no_sync(module)
        return context

    def clip_gradients(self, parameters: Iterable[Tensor], limit: float) -> Tensor:
        """Scale the gradients down to a global norm of `limit`, over all shards, and return the norm before."""
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return full_tensor(norm)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process; all of them must call this."""
        if self._accelerator is None:
            return flag
        count = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(count)
        return bool(count.item())

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes; all of them must call this."""
        if self._accelerator is None:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Run a block after which all processes go on, or none: a `UserError` in one ends the others without a word.

        Only the first process with an error raises it. The block must not make the processes wait for each other.
        """
        if self._accelerator is None:
            yield
            return
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        first_failed = torch.tensor(self.size if failure is None else self.rank, device=self.device)
        dist.all_reduce(first_failed, dist.ReduceOp.MIN)
        if failure is not None and first_failed.item() == self.rank:
            raise failure
        if first_failed.item() < self.size:
            sys.exit(UserError.exit_code)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run a block in the first process, then in all others: what it downloads or decodes is then in the cache."""
        if self.is_main:
            with self.agreed():
                yield
        else:
            with self.agreed():
                pass
            yield


def start_processes(device: torch.device, sharding: str) -> Processes:
    """Return the processes that torchrun started, or this one alone.

    Raises:
        ConfigurationError: sharding with one process, or accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if sharding != "none":
            raise ConfigurationError(
                f"trainer.sharding={sharding} splits a network over several processes, but there is one: start with "
                "torchrun --nproc-per-node=N <program> ... , or leave trainer.sharding=none."
            )
        return Processes(device)
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
    except ImportError as error:
        raise ConfigurationError(
            "Training with several processes needs the package accelerate: pip install 'drift-policy[train]'."
        ) from error
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # trainer.precision decides, not what `accelerate launch` or its configuration file says
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    atexit.unregister(_leave_group)  # a program may train several times
    atexit.register(_leave_group)
    return Processes(device, accelerator, sharding)


def _leave_group() -> None:
    """End the threads of the process group, which now and then abort a process that exits while they run."""
    if dist.is_initialized():
        dist.destroy_process_group()


def launch_command() -> list[str]:
    """Return how a program is started in as many processes of this machine as run now."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun
    return ["python"] if count == "1" else ["torchrun", f"--nproc-per-node={count}"]


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a sharded tensor (all processes must call this), and any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _shard(module: nn.Module) -> nn.Module:
    """Split the parameters of a module over the processes: each block of a list by itself, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for child in module.modules():
        if isinstance(child, nn.ModuleList):
            for block in child:
                if not isinstance(block, nn.ModuleList):  # a list of lists: its blocks come in their own turn
                    fully_shard(block)
    fully_shard(module)
    return module


@contextmanager
def _fsdp_without_sync(module: nn.Module) -> Iterator[None]:
    module.set_requires_gradient_sync(False)  # type: ignore[operator]  # a method that fully_shard adds
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)  # type: ignore[operator]  # a method that fully_shard adds

"""Programs of several processes: data parallel, pipelines, losses, files."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradwatch
from gradwatch.distributed import link
from processes.models import Branching, WithSpare, data, mine, net
from processes.tools import Heard, backward, brought, sgd, twice, weights


def ddp(rank, size):
    return twice(lambda: DistributedDataParallel(net()), *mine(size, rank))


def ddp_with_bucket_views(rank, size):
    return twice(lambda: DistributedDataParallel(net(), gradient_as_bucket_view=True), *mine(size, rank))


def ddp_with_a_static_graph(rank, size):
    return twice(lambda: DistributedDataParallel(net(), static_graph=True), *mine(size, rank))


def ddp_inside(rank, size):
    """The inner model is watched, before it is wrapped."""

    def run(watched):
        model = net()
        with Heard() as heard:
            watch = gradwatch.watch(model, sgd(model), every=2) if watched else None
            optimizer = watch._optimizers[0] if watched else sgd(model)
            wrapped = DistributedDataParallel(model)
            for _ in range(3):
                optimizer.zero_grad()
                backward(wrapped, *mine(size, rank), watch)
                optimizer.step()
            if watch is None:
                return weights(model)
            watch.close()
            return brought(watch, heard, weights=weights(model))

    return run(True) | {"unwatched": run(False)}


def ddp_with_unused_parameters(rank, size):
    return twice(lambda: DistributedDataParallel(WithSpare(), find_unused_parameters=True), *mine(size, rank))


def ddp_accumulating(rank, size):
    """Two micro-batches a step, of which the first is not synchronised."""

    def each(model, x, y, watch):
        with model.no_sync():
            backward(model, x[:2], y[:2], watch)
        backward(model, x[2:], y[2:], watch)

    return twice(lambda: DistributedDataParallel(net()), *mine(size, rank), each=each)


def a_branch_of_one_rank(rank, size):
    return twice(lambda: DistributedDataParallel(Branching(rank), find_unused_parameters=True), *mine(size, rank))


def silence(rank, size):
    """A unit is open for one of a process's samples; in the other process it is silent."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [-1, -1]]))
    x = torch.tensor([[[1.0, 1.0], [2.0, 1.0]], [[1.0, -1.0], [-1.0, -3.0]]])[rank]
    model = DistributedDataParallel(model)
    optimizer = sgd(model)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=1) as watch:
        model(x).sum().backward()
        optimizer.step()
    return brought(watch, heard)


def pipeline(rank, size):
    """The first process has the first two layers, the other one the rest, under the names that they have in the whole."""
    stage = nn.ModuleDict({str(i): layer for i, layer in enumerate(net()) if (i < 2) == (rank == 0)})
    optimizer = sgd(stage)
    x, y = data(size)
    with Heard() as heard, gradwatch.watch(stage, optimizer, every=2) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            if rank == 0:
                middle = stage["1"](stage["0"](x))
                dist.send(middle.detach(), 1)
                grad = torch.empty_like(middle)
                dist.recv(grad, 1)
                middle.backward(grad)
            else:
                middle = torch.empty(len(x), 8)
                dist.recv(middle, 0)
                middle.requires_grad_()
                loss = nn.functional.mse_loss(stage["4"](stage["3"](stage["2"](middle))), y)
                watch.loss(loss).backward()
                dist.send(middle.grad, 0)
            optimizer.step()
    return brought(watch, heard)


def nan_on_one_rank(rank, size):
    """The second process gets a batch with a NaN at step 2."""
    x, y = mine(size, rank)
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    raised = None
    with Heard() as heard, gradwatch.watch(model, optimizer, every=1, on_finding="raise") as watch:
        try:
            for step in range(5):
                x = x.clone()
                if step == 2 and rank == 1:
                    x[0, 0] = float("nan")
                optimizer.zero_grad()
                backward(model, x, y, watch)
                optimizer.step()
        except gradwatch.errors.UnhealthyTraining as error:
            raised = step, error.finding
    return brought(watch, heard, raised=raised)


def losses(rank, size):
    """Only one process tells its loss at step 1, nobody at step 2; at step 3 the loss comes after the step."""
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    x, y = mine(size, rank)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2) as watch:
        for step in range(4):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            if step == 0 or (step == 1 and rank == 1):
                watch.loss(float(10 * step + rank))
            optimizer.step()
    with gradwatch.watch(model, optimizer, every=2) as late:
        for step in range(3):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            late.loss(float(10 * step + rank))
    with gradwatch.watch(model, optimizer, every=2, loss_fn=(criterion := nn.MSELoss())) as by_criterion:
        for _ in range(3):
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    said = {"late": [record.loss for record in late.history], "criterion": [record.loss for record in by_criterion.history]}
    return brought(watch, heard, **said)


def files(rank, size, folder):
    """Every process is given the same directory, and a writer of its own."""

    class Counting:
        written = 0

        def write(self, record):
            self.written += 1

        def report(self, finding):
            """Nothing."""

        def close(self):
            """Nothing."""

    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    counting = Counting()
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2, logdir=folder / "run", writers=[counting]) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            optimizer.step()
    dist.barrier()
    return brought(watch, heard, loaded=gradwatch.load(folder / "run") == watch.history, written=counting.written)


def exchanges(rank, size):
    """How many messages of gradwatch's own are gathered in each step."""
    sent = []

    class Counting(link.Gathering):
        def __init__(self, *args):
            super().__init__(*args)
            sent.append(self)

    link.Gathering, gathering = Counting, link.Gathering
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    messages = []
    with gradwatch.watch(model, optimizer, every=2) as watch:
        for _ in range(6):
            optimizer.zero_grad()
            backward(model, *mine(size, rank), watch)
            before = len(sent)
            optimizer.step()
            messages.append(len(sent) - before)
    link.Gathering = gathering
    # What the first record adds to the agreement is asked for when it becomes final, in the second step.
    return {"messages": [messages[0] + messages[1] - 1, *messages[2:]]}


def a_tap_that_comes_later(rank, size):
    """From the second full record on the second process taps a tensor."""
    model = DistributedDataParallel(net())
    optimizer = sgd(model)
    x, y = mine(size, rank)
    with Heard() as heard, gradwatch.watch(model, optimizer, every=2) as watch:
        for step in range(5):
            optimizer.zero_grad()
            out = model(x)
            if rank == 1 and step >= 2:
                out = watch.tap("late", out)
            nn.functional.mse_loss(out, y).backward()
            optimizer.step()
    return brought(watch, heard)


def two_models(rank, size):
    """Two watched models that step in turn."""
    first, second = DistributedDataParallel(net()), DistributedDataParallel(WithSpare(), find_unused_parameters=True)
    x, y = mine(size, rank)
    with Heard() as heard:
        pairs = [(model, optimizer := sgd(model), gradwatch.watch(model, optimizer, every=2)) for model in (first, second)]
        for _ in range(3):
            for model, optimizer, watch in pairs:
                optimizer.zero_grad()
                backward(model, x, y, watch)
                optimizer.step()
        for *_, watch in pairs:
            watch.close()
    return brought(pairs[0][2], heard, second=pairs[1][2].history.to_pandas())

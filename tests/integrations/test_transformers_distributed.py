"""Two processes with half of the batch each take the step of one process with all of it."""

import subprocess
import sys
import textwrap

import torch

STEPS = textwrap.dedent(
    """
    import torch
    from torch import nn
    from smartcs.integrations.objective import SmartObjective  # and not the Trainer, to start sooner

    class Classifier(nn.Module):
        class config:
            num_labels, problem_type = 2, "single_label_classification"

        def __init__(self):
            super().__init__()
            self.words, self.hidden, self.head = nn.Embedding(100, 32), nn.Linear(32, 32), nn.Linear(32, 2)

        def get_input_embeddings(self):
            return self.words

        def forward(self, input_ids, attention_mask, labels=None):
            words = torch.tanh(self.hidden(self.words(input_ids))) * attention_mask[..., None]
            logits = self.head(words.mean(dim=1))
            return {"logits": logits, "loss": None if labels is None else nn.functional.cross_entropy(logits, labels)}

    def take_steps(model, batch, noise):
        strong = {"smart_weight": 50.0, "bregman_weight": 1.0, "update": "projected", "step_size": 1e-2, "radius": 1e-2}
        smart = SmartObjective(model, **strong)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        real = smart._regularizer.from_offsets
        smart._regularizer.from_offsets = lambda *args, **kwargs: real(*args, noise=noise, **kwargs)
        for _ in range(2):
            optimizer.zero_grad()
            smart(batch).loss.backward()
            optimizer.step()
            smart.update()
        return smart
    """
)

PROCESS = STEPS + textwrap.dedent(
    """
    import sys
    from torch.nn.parallel import DistributedDataParallel

    folder, rank = sys.argv[1], int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    weights, batch, noise = torch.load(f"{folder}/start.pt")
    torch.set_num_threads(1)
    model = Classifier().double()
    model.load_state_dict(weights)
    own = slice(4 * rank, 4 * rank + 4)
    half = {name: values[own] for name, values in batch.items()}
    smart = take_steps(DistributedDataParallel(model), half, noise[own])
    torch.save([list(model.parameters()), list(smart._anchor.anchor.parameters())], f"{folder}/end{rank}.pt")
    print(smart._regularizer.seed)
    torch.distributed.destroy_process_group()
    """
)


def test_distributed_data_parallel(sentences, tmp_path):
    names = {}
    exec(STEPS, names)
    model, batch = names["Classifier"]().double().train(), sentences()
    noise = 1e-2 * torch.randn(8, 10, 32, dtype=torch.float64)
    torch.save([model.state_dict(), batch, noise], tmp_path / "start.pt")
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(rank)], **pipes) for rank in (0, 1)]
    smart = names["take_steps"](model, batch, noise)

    seeds = []
    for process in processes:
        seed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        seeds.append(int(seed))
    assert seeds == [0, 1]  # the processes' sentences differ, and so does their noise
    expected = [list(model.parameters()), list(smart._anchor.anchor.parameters())]
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"end{rank}.pt"), expected, rtol=1e-7, atol=1e-9)

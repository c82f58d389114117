"""An encoder under a language model: what is pooled, who learns, and that nothing but the new parts is saved."""

from __future__ import annotations

import pytest
import torch
import transformers as tr
from peft import LoraConfig, get_peft_model
from torch import nn

from core.control import stacking_trainer
from core.control.stacking import StackedEncoderLM, both_ways, mean_pool, precompute_embeddings, span_pool, unexplained
from core.errors import CheckpointError, ConfigError, DataError


def encoder(width=12):
    torch.manual_seed(1)
    config = tr.M2M100Config(
        vocab_size=40, d_model=width, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, dropout=0.0,
    )  # fmt: skip
    return tr.M2M100Model(config).get_encoder()


def llama(lora=True, **more):
    torch.manual_seed(2)
    config = tr.LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, **more,
    )  # fmt: skip
    model = tr.LlamaForCausalLM(config)
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")) if lora else model


class Embeds(nn.Module):
    """The language model's own table as the encoder."""

    def __init__(self, table, config):
        super().__init__()
        self.table, self.config = table, config

    def forward(self, input_ids, attention_mask):
        return tr.modeling_outputs.BaseModelOutput(last_hidden_state=self.table(input_ids))


IDS = torch.arange(3, 15).view(2, 6)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def test_its_own_table_and_an_identity_give_the_teachers_vector():
    llm = llama()
    stacked = StackedEncoderLM(Embeds(llm.get_input_embeddings(), llm.config), llm).eval()
    with torch.no_grad():
        stacked.projection.weight.copy_(torch.eye(16))
        stacked.projection.bias.zero_()
        student = stacked.student(IDS, MASK)
    torch.testing.assert_close(student, stacked.teacher(IDS, MASK), atol=1e-6, rtol=1e-5)


def test_padding_does_not_matter_and_later_tokens_do():
    stacked = StackedEncoderLM(encoder(), llama()).eval()
    with torch.no_grad():
        first = stacked.teacher(IDS, MASK)
        other = IDS.clone()
        other[1, 4:] = 29
        assert torch.equal(stacked.teacher(other, MASK), first)
        right = stacked.teacher(IDS[1:, :4], MASK[1:, :4])
        left = stacked.teacher(torch.cat([other[1:, 4:], IDS[1:, :4]], 1), torch.tensor([[0, 0, 1, 1, 1, 1]]))
        torch.testing.assert_close(right, first[1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
        body = stacked.body
        one = body(input_ids=IDS, attention_mask=both_ways(torch.ones_like(IDS)), use_cache=False).last_hidden_state
        changed = IDS.clone()
        changed[:, -1] = 20
        two = body(input_ids=changed, attention_mask=both_ways(torch.ones_like(IDS)), use_cache=False).last_hidden_state
    assert (one[:, 0] - two[:, 0]).abs().max() > 1e-4, "the first token sees the last"
    pooled = mean_pool(torch.full((1, 2, 3), torch.nan).index_fill(1, torch.tensor([0]), 2.0), torch.tensor([[1, 0]]))
    assert pooled.tolist() == [[2.0, 2.0, 2.0]]


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 30, (6,), generator=generator)
        row = {"input_ids": ids, "attention_mask": torch.ones(6, dtype=torch.long)}
        return {**row, "teacher_ids": ids, "teacher_mask": row["attention_mask"], "target": torch.ones(16)}


def trained(tmp_path, stage, steps=40):
    stacked = StackedEncoderLM(encoder(), llama())
    before = {n: p.detach().clone() for n, p in stacked.named_parameters()}
    teacher = stacked.teacher(IDS, MASK)
    args = tr.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=steps, learning_rate=1e-2, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1, remove_unused_columns=False, seed=1,
    )  # fmt: skip
    trainer = stacking_trainer.SelfDistillTrainer(model=stacked, args=args, train_dataset=Rows(), stage=stage)
    trainer.train()
    return stacked, before, teacher, [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("stage", [1, 2])
def test_the_student_learns_and_the_teacher_stays(tmp_path, stage):
    stacked, before, teacher, log = trained(tmp_path, stage)
    assert torch.equal(stacked.teacher(IDS, MASK), teacher)
    assert log[-1]["loss"] < 0.7 * log[0]["loss"] and "unexplained" in log[0]
    moved = {n for n, p in stacked.named_parameters() if not torch.equal(p, before[n])}
    assert any("lora_" in n for n in moved) and not any("encoder" in n or "base_layer" in n for n in moved)
    assert ("projection.weight" in moved) == (stage == 1)


def test_only_the_new_parts_are_saved(tmp_path):
    stacked, *_ = trained(tmp_path / "t", 1, steps=3)
    stacked.head = nn.Linear(16, 3)
    stacked.save_pretrained(tmp_path / "saved")
    size = sum(p.stat().st_size for p in (tmp_path / "saved").rglob("*.safetensors"))
    new = sum(p.numel() for n, p in stacked.named_parameters() if "lora_" in n or "projection" in n or "head" in n)
    assert 4 * new <= size < 4 * new + 12_000
    again = StackedEncoderLM(encoder(), llama(), nn.Linear(16, 3)).load(tmp_path / "saved").eval()
    assert torch.equal(again(IDS, MASK), stacked.eval()(IDS, MASK)) and again(IDS, MASK).shape == (2, 3)
    with pytest.raises(CheckpointError, match="widths"):
        StackedEncoderLM(encoder(8), llama()).load(tmp_path / "saved")


class Wrapper(nn.Module):
    """What DDP is to a Trainer: gradients are averaged over processes only after its own forward."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("head", [None, nn.Linear(16, 3)])
def test_the_student_runs_inside_the_wrapper_of_several_processes(tmp_path, head):
    stacked = StackedEncoderLM(encoder(), llama(), head)
    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer, wrapper = stacking_trainer.SelfDistillTrainer(model=stacked, args=args), Wrapper(stacked)
    batch = {name: torch.stack([Rows()[i][name] for i in range(2)]) for name in Rows()[0]}
    loss, found = trainer.compute_loss(wrapper, batch, return_outputs=True)
    assert wrapper.calls == 1 and found.shape == (2, 16)
    torch.testing.assert_close(loss, trainer.compute_loss(stacked, batch))


def test_checkpoints_hold_no_base_and_a_run_goes_on_from_one(tmp_path):
    def run(folder, steps, resume=False, **more):
        stacked = StackedEncoderLM(encoder(), llama(tie_word_embeddings=True))
        args = tr.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=8, max_steps=steps, learning_rate=1e-2, use_cpu=True,
            report_to=[], disable_tqdm=True, save_steps=3, remove_unused_columns=False, seed=1,
            lr_scheduler_type="constant", **more,
        )  # fmt: skip
        trainer = stacking_trainer.SelfDistillTrainer(model=stacked, args=args, train_dataset=Rows())
        trainer.train(resume_from_checkpoint=resume)
        return stacked.eval().student(IDS, MASK)

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "parts", 3, gradient_checkpointing=True)
    torch.testing.assert_close(run(tmp_path / "parts", 6, True), whole, atol=1e-5, rtol=1e-4)
    names = [p.name for p in (tmp_path / "whole" / "checkpoint-3").rglob("*.safetensors")]
    assert sorted(names) == ["adapter_model.safetensors", "projection.safetensors"]


def test_vectors_computed_before_are_those_of_now():
    stacked = StackedEncoderLM(encoder(), llama()).train()
    batches = [{"input_ids": IDS, "attention_mask": MASK}, {"input_ids": IDS[:1], "attention_mask": MASK[:1]}]
    found = precompute_embeddings(stacked, batches)
    assert found.shape == (3, 16) and stacked.training and not stacked.encoder.training
    torch.testing.assert_close(found[:2], stacked.teacher(IDS, MASK), atol=1e-6, rtol=1e-5)


def test_choices_that_share_a_sequence_are_pooled_apart():
    stacked = StackedEncoderLM(encoder(), llama(), nn.Linear(16, 1)).eval()
    first, second = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
    spans = torch.tensor([[first, second], [first, second]])
    found = stacked.student(IDS, MASK, spans)
    assert found.shape == (2, 2, 16) and stacked(IDS, MASK, spans).shape == (2, 2, 1)
    whole = stacked.student(IDS, MASK, MASK[:, None])
    torch.testing.assert_close(whole[:, 0], stacked.student(IDS, MASK))
    # the second row has four tokens: three of its first choice and one of its second
    torch.testing.assert_close((3 * found[1, 0] + found[1, 1]) / 4, whole[1, 0])
    batch = {"input_ids": IDS, "attention_mask": MASK, "spans": spans}
    kept = precompute_embeddings(stacked, [batch])
    torch.testing.assert_close(kept, stacked.teacher(IDS, MASK, spans), atol=1e-6, rtol=1e-5)
    poisoned = torch.full((1, 2, 3), torch.nan).index_fill(1, torch.tensor([0]), 2.0)
    assert span_pool(poisoned, torch.tensor([[[1, 0]]])).tolist() == [[[2.0, 2.0, 2.0]]]
    with pytest.raises(DataError, match=r"\[3\]"):
        stacked.student(IDS, MASK, torch.tensor([[first, second], [first, [0, 0, 0, 0, 1, 1]]]))


def test_unexplained_variance():
    torch.manual_seed(0)
    teacher = torch.randn(64, 5)
    assert unexplained(teacher, teacher) == 0
    mean = teacher.mean(0).expand_as(teacher)
    torch.testing.assert_close(unexplained(mean, teacher), torch.tensor(1.0))


def test_from_folders(tmp_path):
    torch.manual_seed(0)
    config = tr.M2M100Config(
        vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    tr.M2M100ForConditionalGeneration(config).save_pretrained(tmp_path / "mt")
    llama(lora=False).save_pretrained(tmp_path / "llm")
    stacked = StackedEncoderLM.from_pretrained(str(tmp_path / "mt"), str(tmp_path / "llm"))
    assert stacked.projection.in_features == 8 and stacked(IDS, MASK).shape == (2, 16)


def test_mistakes_are_told(tmp_path):
    stacked = StackedEncoderLM(encoder(), llama())
    empty = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    for read in (stacked.student, stacked.teacher):
        with pytest.raises(DataError, match=r"rows without a token: \[1\]"):
            read(IDS, empty)
    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ConfigError, match="stage 3"):
        stacking_trainer.SelfDistillTrainer(model=stacked, args=args, stage=3)
    with pytest.raises(CheckpointError, match="no stacked model"):
        stacked.load(tmp_path)


def test_a_task_has_an_adapter_of_its_own():
    stacked = StackedEncoderLM(encoder(), llama())
    plain = stacked.teacher(IDS, MASK)
    stacked.begin_task(["no", "yes"], seed=1)
    stacked.begin_task(["no", "yes"], seed=2)
    for name, parameter in stacked.llm.named_parameters():
        if "lora_B.task" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    stacked.let_learn(projection=True)
    learns = [name for name, p in stacked.named_parameters() if p.requires_grad]
    assert torch.equal(stacked.teacher(IDS, MASK), plain)
    assert (stacked.teacher(IDS, MASK, adapter="task") - plain).abs().max() > 1e-3
    assert [name for name, p in stacked.named_parameters() if p.requires_grad] == learns
    assert any("default" in name for name in learns) and not any("task" in name or "head" in name for name in learns)
    stacked.let_learn("task", head=True)
    learns = [name for name, p in stacked.named_parameters() if p.requires_grad]
    assert {"head.weight", "head.bias"} < set(learns) and not any("default" in n or "projection" in n for n in learns)
    with pytest.raises(ConfigError, match="the task has the classes no, yes"):
        stacked.begin_task(["a", "b"])
    with pytest.raises(ConfigError, match="there are no adapters"):
        StackedEncoderLM(encoder(), llama(lora=False)).begin_task(["a", "b"])


def test_the_language_model_learns_a_task_by_itself(tmp_path):
    class Labelled(Rows):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "labels": torch.tensor(index % 2)}

    stacked = StackedEncoderLM(encoder(), llama())
    args = tr.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, max_steps=30, learning_rate=2e-2, use_cpu=True,
        report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1, remove_unused_columns=False, seed=1,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no task"):
        stacking_trainer.TaskTrainer(model=stacked, args=args, train_dataset=Labelled())
    stacked.begin_task(["even", "odd"])
    before = {n: p.detach().clone() for n, p in stacked.named_parameters()}
    trainer = stacking_trainer.TaskTrainer(model=stacked, args=args, train_dataset=Labelled())
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    moved = {n for n, p in stacked.named_parameters() if not torch.equal(p, before[n])}
    assert all(".task." in n or n.startswith("head") for n in moved) and any(".task." in n for n in moved)
    again = StackedEncoderLM(encoder(), llama())
    stacked.save_pretrained(tmp_path / "saved")
    again.load(tmp_path / "saved").eval()
    assert again.labels == ["even", "odd"]
    torch.testing.assert_close(again.teacher(IDS, MASK, adapter="task"), stacked.teacher(IDS, MASK, adapter="task"))


def test_rows_that_only_fill_up_do_not_count(tmp_path):
    stacked = StackedEncoderLM(encoder(), llama())
    args = tr.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer = stacking_trainer.SelfDistillTrainer(model=stacked, args=args)
    rows = [Rows()[i] for i in range(4)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    part = trainer.compute_loss(stacked, {name: value[:3] for name, value in batch.items()})
    marked = {**batch, "labels": torch.tensor([0, 0, 0, -100])}
    torch.testing.assert_close(trainer.compute_loss(stacked, marked), part)
    torch.testing.assert_close(trainer.compute_loss(stacked, marked, num_items_in_batch=6), part / 2)

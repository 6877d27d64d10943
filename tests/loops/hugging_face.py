"""Hugging Face's CLIPModel with its Trainer; the weights are random, and nothing is downloaded."""

import torch
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

import flowsim as fs

tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
vision = {**tower, "image_size": 16, "patch_size": 8}
text = {**tower, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49, "bos_token_id": 0}
config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
data = [{"pixel_values": torch.randn(3, 16, 16), "input_ids": torch.randint(1, 49, (8,))} for _ in range(64)]
arguments = TrainingArguments(
    "out", max_steps=20, per_device_train_batch_size=8, weight_decay=0.1, use_cpu=True, report_to=[]
)


def collate(rows):
    return {"return_loss": True, **{name: torch.stack([row[name] for row in rows]) for name in rows[0]}}


# --- what flowsim adds
model = CLIPModel(config)
controller = fs.torch.TemperatureController(model.logit_scale, "Baseline", total_steps=20)
monitor = fs.torch.GapMonitor(every=5, to="run.nc", controller=controller).watch(model)
callback = fs.torch.trainer_callback(controller, monitor)
Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[callback]).train()

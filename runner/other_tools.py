"""What settings and values are called in other tools, and what they are called here.

Sources: transformers 5.23 (TrainingArguments), accelerate 1.15, Lightning 2, torchrun, axolotl, litgpt, nanoGPT, timm.
"""

from collections.abc import Collection
from typing import NamedTuple

from runner.parts.installation import shown_launch_config


class Elsewhere(NamedTuple):
    """Names that other tools have for a setting."""

    names: str
    """With blanks between them."""
    here: str
    """What to type: settings with blanks between them, the first that the recipe has is taken; empty: there is none."""
    differs: str = ""
    """What differs, as a sentence."""


GPUS = "Relay takes the GPU that is there; CUDA_VISIBLE_DEVICES= in front of the command hides it."
PROCESSES = "The launcher decides on processes: type accelerate launch --config_file {config} runner/train.py ..."
SECRET = "Secrets are no settings, because settings are written to files: set the provider's environment variable."

TABLE = [
    Elsewhere("lr learn_rate max_lr peak_lr base_lr initial_learning_rate", "learning_rate"),
    Elsewhere("wd l2 weight_decay_rate", "weight_decay"),
    Elsewhere(
        "bs batch batchsize train_batch_size total_batch_size global_batch_size train_bs n_batch b",
        "batch_size",
        "It counts the examples of a step over all processes; --micro_batch_size is what one process holds at a time.",
    ),
    Elsewhere(
        "per_device_train_batch_size per_gpu_train_batch_size device_batch_size per_device_batch_size "
        "micro_batch micro_bs mbs train_micro_batch_size_per_gpu batch_size_per_device",
        "micro_batch_size",
        "--batch_size counts the examples of a step over all processes.",
    ),
    Elsewhere(
        "per_device_eval_batch_size per_gpu_eval_batch_size val_batch_size eval_bs test_batch_size "
        "validation_batch_size",
        "eval_batch_size",
    ),
    Elsewhere(
        "epochs epoch num_epochs max_epochs n_epochs train_epochs nb_epochs ep number_of_epochs",
        "num_train_epochs",
    ),
    Elsewhere(
        "steps num_steps n_steps train_steps max_train_steps num_training_steps total_steps iterations max_iters "
        "num_iterations iters max_iterations training_steps",
        "max_steps",
        "A step is one update of the optimiser.",
    ),
    Elsewhere("fp16 half use_fp16 float16", "mixed_precision fp16"),
    Elsewhere("bf16 use_bf16 bfloat16 bf16_full_eval", "mixed_precision bf16"),
    Elsewhere("fp32 float32 no_amp full_precision no_fp16 no_bf16", "mixed_precision no"),
    Elsewhere(
        "precision amp use_amp dtype torch_dtype half_precision_backend use_mixed_precision autocast",
        "mixed_precision",
        "Its values are auto, no, bf16 and fp16.",
    ),
    Elsewhere(
        "evaluation_strategy eval_strategy val_check_interval check_val_every_n_epoch eval_interval "
        "eval_freq evaluate_every eval_frequency evals_per_epoch validation_steps val_interval do_evaluate",
        "eval_steps",
        "It is the number of steps between two evaluations; 0: only at the end. For epochs type --eval_every epoch.",
    ),
    Elsewhere(
        "save_strategy save_interval save_freq checkpoint_every checkpointing_steps save_frequency "
        "every_n_train_steps saves_per_epoch checkpoint_interval ckpt_every",
        "save_steps",
        "It is the number of steps between two checkpoints; 0: only at the end. For epochs type --save_every epoch.",
    ),
    Elsewhere(
        "logging_strategy log_every log_interval log_every_n_steps logging_first_step log_freq log_steps print_every",
        "logging_steps",
        "It is the number of steps between two log lines.",
    ),
    Elsewhere(
        "overwrite_output_dir overwrite force exist_ok",
        "",
        "Relay does not overwrite a run: type another --output_dir, or --resume_from_checkpoint auto to continue it.",
    ),
    Elsewhere(
        "num_processes nproc nproc_per_node n_gpu gpus num_gpus ngpus devices n_devices world_size num_nodes nnodes "
        "num_machines processes machine_rank node_rank main_process_port multi_gpu num_cpu_threads_per_process",
        "",
        PROCESSES,
    ),
    Elsewhere("local_rank rank ddp_backend strategy ddp distributed_backend", "", PROCESSES),
    Elsewhere(
        "deepspeed fsdp fsdp_config zero_stage use_fsdp deepspeed_config",
        "",
        "The launcher decides on sharding: type accelerate launch --config_file {fsdp} runner/train.py ...",
    ),
    Elsewhere("config_file yaml cfg conf", "config", "A file of accelerate stands before runner/train.py instead."),
    Elsewhere("accelerator device use_cpu no_cuda cpu cuda use_cuda use_mps_device mps gpu gpu_ids", "", GPUS),
    Elsewhere(
        "load_best_model_at_end",
        "final best",
        "checkpoint-best holds the best weights in any case.",
    ),
    Elsewhere("optimizer optimiser opt optimizer_name", "optim", "Its values are adamw and muon."),
    Elsewhere("beta1 adam_b1", "adam_beta1"),
    Elsewhere("beta2 adam_b2", "adam_beta2"),
    Elsewhere("betas adam_betas", "adam_beta1", "The second one is --adam_beta2."),
    Elsewhere("eps adam_eps epsilon", "adam_epsilon"),
    Elsewhere("momentum nesterov", "", "Relay trains with AdamW or Muon: --optim, --adam_beta1."),
    Elsewhere(
        "warmup num_warmup_steps warmup_iters lr_warmup_steps warmup_updates warmup_epochs",
        "warmup_steps",
        "It counts steps; --warmup_ratio is a share of the run.",
    ),
    Elsewhere("warmup_proportion warmup_fraction warmup_percent pct_start warmup_frac", "warmup_ratio"),
    Elsewhere(
        "scheduler lr_scheduler lr_schedule scheduler_type lr_scheduler_kwargs sched schedule lr_decay_style decay_lr "
        "scheduler_name",
        "lr_scheduler_type",
        "Its values are constant, linear, cosine, step, one_cycle and wsd.",
    ),
    Elsewhere("min_lr eta_min min_learning_rate", "min_lr_ratio", "It is a share of --learning_rate."),
    Elsewhere("gamma lr_decay decay_factor", "lr_gamma"),
    Elsewhere("step_size lr_decay_steps", "lr_step_size"),
    Elsewhere(
        "gradient_clip_val grad_clip clip_grad_norm clip_grad clip max_norm gradient_clipping grad_norm gradient_clip "
        "clip_norm max_gradient_norm",
        "max_grad_norm",
        "0: no clipping.",
    ),
    Elsewhere(
        "grad_accum accumulate_grad_batches accumulation_steps grad_accum_steps gradient_accumulation "
        "grad_accumulation_steps gas accum_iter accumulate accum_steps",
        "gradient_accumulation_steps",
        "It follows from --batch_size and --micro_batch_size, so mostly neither needs it.",
    ),
    Elsewhere(
        "resume resume_from resume_training ckpt_path resume_path continue load_checkpoint restore ckpt continue_from "
        "resume_ckpt auto_resume resume_dir last restore_from resume_from_ckpt",
        "resume_from_checkpoint",
        "Its value is auto (the newest one in --output_dir), a folder, or a URL.",
    ),
    Elsewhere(
        "init_checkpoint init_weights weights warm_start init_from_checkpoint load_weights finetune_from",
        "init_from",
    ),
    Elsewhere(
        "do_train do_eval do_predict do_test mode train eval test",
        "",
        "relay train trains and evaluates; relay evaluate scores a trained model, and relay predict asks it.",
    ),
    Elsewhere(
        "logging_dir log_dir logdir tensorboard_dir tb_dir",
        "output_dir",
        "Trackers write into a folder in it.",
    ),
    Elsewhere(
        "save_dir out out_dir output output_path default_root_dir work_dir run_dir project_dir outdir o dest model_dir "
        "checkpoint_dir checkpoints_dir ckpt_dir save_path exp_dir experiment_dir results_dir",
        "output_dir",
    ),
    Elsewhere("seed_everything random_seed data_seed random_state manual_seed rng_seed np_seed torch_seed", "seed"),
    Elsewhere(
        "patience early_stopping early_stop es_patience early_stopping_rounds",
        "early_stopping_patience",
        "It counts evaluations without a better score.",
    ),
    Elsewhere("early_stopping_threshold min_delta early_stopping_delta", "early_stopping_min_delta"),
    Elsewhere("metric monitor best_metric eval_metric", "metric_for_best_model"),
    Elsewhere("maximize metric_mode monitor_mode", "greater_is_better"),
    Elsewhere(
        "keep_last_n save_top_k max_checkpoints keep_checkpoints total_limit checkpoints_total_limit "
        "keep_last_n_checkpoints max_to_keep",
        "save_total_limit",
    ),
    Elsewhere(
        "save_best save_last save_best_only save_only_best",
        "",
        "checkpoint-best and checkpoint-latest are there in any case.",
    ),
    Elsewhere("dataloader_num_workers workers n_workers num_proc loader_workers data_workers j", "num_workers"),
    Elsewhere("compile use_compile torchcompile torch_compile_backend", "torch_compile"),
    Elsewhere("checkpointing activation_checkpointing grad_checkpointing use_checkpoint", "gradient_checkpointing"),
    Elsewhere("max_train_samples max_samples limit_train_batches train_size num_samples subset", "max_train_examples"),
    Elsewhere("max_eval_samples max_val_samples limit_val_batches eval_iters max_eval_batches", "max_eval_examples"),
    Elsewhere("run_name experiment_name exp_name wandb_name", "wandb_run_name"),
    Elsewhere("project project_name wandb_project_name", "wandb_project"),
    Elsewhere("use_wandb wandb wandb_log with_wandb", "report_to wandb"),
    Elsewhere("tensorboard use_tensorboard", "report_to tensorboard"),
    Elsewhere("tracker logger log_with tracking report with_tracking", "report_to"),
    Elsewhere(
        "push_to_hub hub_model_id hub_strategy push hub_repo",
        "upload_to",
        "It takes the URL of a bucket. For the hub, type relay export RUN --output DIR --push_to_hub OWNER/NAME later.",
    ),
    Elsewhere(
        "hub_token hf_token token use_auth_token api_key wandb_api_key wandb_key aws_access_key_id password secret "
        "aws_secret_access_key azure_sas_token access_key secret_key credentials azure_connection_string",
        "",
        SECRET,
    ),
    Elsewhere("trust_remote_code", "", "Relay runs no code that a model or a data set brings."),
    Elsewhere(
        "tf32 fp16_opt_level fp16_backend apex remove_unused_columns disable_tqdm",
        "",
        "Relay has nothing that it would change.",
    ),
    Elsewhere("deterministic_algorithms cudnn_deterministic full_determinism use_deterministic", "deterministic"),
    Elsewhere("fast_dev_run test_run sanity_check dry dryrun smoke_test", "dry_run"),
    Elsewhere("verbose v log_level quiet", "debug"),
    Elsewhere(
        "model_name_or_path model_name model pretrained pretrained_model_name_or_path base_model model_path "
        "pretrained_model model_id",
        "model.pretrained model.text_encoder init_from",
        "Its value is a folder with a trained model.",
    ),
    Elsewhere("tokenizer_name tokenizer_path tokenizer", "tokenizer.path"),
    Elsewhere(
        "dataset_name dataset datasets data_path dataset_path data train_file train_data train_dataset dataset_id "
        "data_file input train_path data_files corpus input_file",
        "data.source data.train data.table",
    ),
    Elsewhere("data_dir dataset_dir data_root train_dir data_folder", "data.dir data.corpus data.source data.table"),
    Elsewhere("dataset_config_name dataset_config", "data.config"),
    Elsewhere(
        "validation_file val_file eval_file val_data valid_file val_dataset eval_dataset dev_file val_path",
        "data.validation_source data.test data.source",
    ),
    Elsewhere(
        "val_split validation_split validation_split_percentage val_size val_set_size test_size",
        "data.validation_fraction",
    ),
    Elsewhere("sample_packing pack_sequences", "data.packing", "data.isolate_documents separates packed documents."),
    Elsewhere("load_in_4bit quantization quantization_config", "model.load_in 4bit", "It needs adapters and CUDA."),
    Elsewhere("load_in_8bit", "", "Relay holds a frozen model in bf16, or with --model.load_in 4bit in 4 bits."),
    Elsewhere("rl dpo rlhf", "", "Relay has no preference training and no reinforcement learning."),
    Elsewhere("text_column_name text_field dataset_text_field", "data.text_column"),
    Elsewhere("target_column label_column label_name label target label_col y", "data.target"),
    Elsewhere(
        "max_length max_seq_len block_size seq_len seq_length context_length sequence_len sequence_length ctx_len "
        "max_len n_ctx max_sequence_length model_max_length",
        "data.max_seq_length",
        "It counts tokens.",
    ),
    Elsewhere("d_model n_embd hidden_dim embed_dim model_dim dim width emb_dim n_hidden", "model.hidden_size"),
    Elsewhere(
        "n_layer num_layers n_layers depth layers num_blocks",
        "model.num_hidden_layers model.sample_layers model.interaction_layers",
    ),
    Elsewhere("n_head num_heads n_heads heads", "model.num_attention_heads"),
    Elsewhere("d_ff ffn_dim mlp_dim ff_dim feedforward_dim", "model.intermediate_size"),
    Elsewhere("num_experts n_experts moe_num_experts", "model.num_local_experts"),
    Elsewhere("top_k_experts moe_top_k", "model.num_experts_per_tok"),
    Elsewhere("dropout_rate p_dropout", "model.dropout"),
    Elsewhere("use_lora use_peft peft lora lora_r lora_rank", "lora.rank", "Above 0, adapters are trained."),
    Elsewhere("lora_alpha", "lora.alpha"),
    Elsewhere("lora_dropout", "lora.dropout"),
    Elsewhere("lora_target_modules lora_modules", "lora.target_modules"),
]
BY_NAME = {name: each for each in TABLE for name in each.names.split()}

VALUES = {
    "mixed_precision": {
        "bfloat16 bf16_mixed bf16-mixed bf16-true bf": "bf16",
        "float16 half 16 fp16-mixed 16-mixed 16-true f16": "fp16",
        "fp32 float32 32 32-true float full none false off tf32": "no",
        "true on yes amp mixed": "auto",
    },
    "optim": {
        "adamw_torch adamw_hf adamw_torch_fused adam adamw_fused torch_adamw": "adamw",
        "adamw_8bit adamw_bnb_8bit paged_adamw_8bit paged_adamw_32bit adafactor sgd lion lamb rmsprop adagrad": "adamw",
    },
    "lr_scheduler_type": {
        "cosine_with_restarts cosine_with_min_lr cosine_annealing cosine_warmup cosineannealinglr polynomial": "cosine",
        "constant_with_warmup none flat": "constant",
        "onecycle 1cycle onecyclelr": "one_cycle",
        "warmup_stable_decay trapezoidal": "wsd",
        "steplr multistep exponential": "step",
        "linear_with_warmup linearlr": "linear",
    },
    "report_to": {
        "tb tensorboardx": "tensorboard",
        "false off no null disabled": "none",
        "w&b weights_and_biases all": "wandb",
    },
    "on_bad_step": {"ignore continue": "skip", "raise error abort": "stop", "restore revert": "rollback"},
}  # fmt: skip
"""Setting -> values elsewhere, with blanks between them -> the value here that is nearest."""

DIFFERING = {
    "adamw_8bit": "Relay keeps AdamW's state in fp32.",
    "adafactor": "Relay has AdamW and Muon.",
    "cosine_with_restarts": "Relay's does not restart.",
    "cosine_with_min_lr": "--min_lr_ratio sets the floor.",
    "constant_with_warmup": "--warmup_steps goes with it.",
    "all": "Relay writes to one tracker.",
}


def name_here(name: str, known: Collection[str], mark: str) -> str | None:
    """What another tool's setting is called here, as sentences for a message; None where the table has no such name.

    `known`: the settings that there are; `mark`: what stands in front of them, `--` for a flag.
    """
    each = BY_NAME.get(name.lower())
    if each is None:
        return None
    differs = each.differs.format(config=shown_launch_config("gpus_ddp"), fsdp=shown_launch_config("gpus_fsdp2"))
    words = each.here.split()
    candidates = [word for word in words if word in known]
    if not candidates:
        return differs or "This recipe has nothing like it."
    # A value may follow the first name: mixed_precision bf16.
    value = words[1] if len(words) > 1 and "." not in words[1] and words[1] not in known else ""
    separator = ": " if not mark and value else " "
    shown = f"{mark}{candidates[0]}{separator}{value}".strip()
    return f"Did you mean {shown}? {differs}".strip()


def value_here(setting: str, value: str) -> str | None:
    """The value here that another tool's value of a setting is nearest to, as sentences; None for unknown ones."""
    for names, here in VALUES.get(setting, {}).items():
        if value.lower() in names.split():
            differs = DIFFERING.get(value.lower(), "")
            if not differs and here == "adamw" and "8bit" in value.lower():
                differs = DIFFERING["adamw_8bit"]
            elif not differs and setting == "optim" and "adam" not in value.lower():
                differs = DIFFERING["adafactor"]
            return f"Did you mean {here}? {differs}".strip()
    return None

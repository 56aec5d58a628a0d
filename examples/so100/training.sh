# Sourced by the options of real arms: how demonstrations are recorded, and what is trained on them.
EPISODES=${EPISODES:-50}
EPISODE_S=${EPISODE_S:-20}
RESET_S=${RESET_S:-10}
CONFIG=${CONFIG:-configs/so100_lora.yaml}   # Qwen2.5-VL-3B with LoRA, one 24 GB GPU
CHUNK=${CHUNK:-15}                          # at 30 frames a second; vla0 latency says what your GPU sustains
STEPS=${STEPS:-10000}
SAVE=${SAVE:-1000}                          # steps between checkpoints: 3_train.sh goes on from the last one
DEVICE=${DEVICE:-cuda}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}  # the backbone is downloaded once

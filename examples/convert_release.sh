#!/usr/bin/env bash
# Google's release of RecurrentGemma, from Kaggle to Transformers, and back to the formats of DeepMind's code.
#
#   pip install "recurrent-gemma[convert]" kagglehub
#   bash examples/convert_release.sh 2b-it              # or 2b, 9b, 9b-it; writes to the current directory
#   bash examples/convert_release.sh 2b-it DIRECTORY    # of a release that you have downloaded and extracted
#
# Kaggle asks for an account, its license to be accepted once at https://www.kaggle.com/models/google/recurrentgemma,
# and an API key: KAGGLE_USERNAME and KAGGLE_KEY, or ~/.kaggle/kaggle.json.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
fi
variant=${1:?which release? 2b, 2b-it, 9b or 9b-it}
release=${2:-}
model=recurrentgemma-$variant

# 1. Download. It holds a directory of weights, named like the variant, and tokenizer.model. (Handle and names are those
#    of colabs/sampling_tutorial_jax.ipynb in https://github.com/google-deepmind/recurrentgemma.)
if [[ -z $release ]]; then
    download="import kagglehub; print(kagglehub.model_download('google/recurrentgemma/flax/$variant'))"
    release=$(python -c "$download" | tail -n 1)
fi

# 2. Look: reads headers only, and writes nothing. 2b and 2b-it are of one size, and so are 9b and 9b-it.
recurrent-gemma convert "$release/$variant" "$model" --preset "${variant%-it}" --tokenizer "$release/tokenizer.model" \
    --dry-run

# 3. Convert, and compare the logits of what was written with those of DeepMind's JAX model.
recurrent-gemma convert "$release/$variant" "$model" --preset "${variant%-it}" --tokenizer "$release/tokenizer.model" \
    --verify

# 4. Use it: here, or with AutoModelForCausalLM after `import recurrent_gemma`.
recurrent-gemma info "$model"
recurrent-gemma generate "The planets of the solar system are" --model "$model" --max-new-tokens 40 --seed 0
if [[ $variant == *-it ]]; then
    recurrent-gemma chat --model "$model" --max-new-tokens 100 --seed 0 <<< "What are the planets of the solar system?"
fi

# 5. And back, after fine-tuning, say: for DeepMind's JAX code, and for its PyTorch code.
recurrent-gemma convert "$model" "$model-flax" --to flax
recurrent-gemma convert "$model" "$model.pt"

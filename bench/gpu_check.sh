#!/usr/bin/env bash
# All that a machine with a CUDA GPU can tell, in nine minutes: builds for its architecture, runs the
# CUDA tests, the sanitizer and the benchmark, then the CPU's instruction sets and the scaling with
# its threads, since such a machine has more cores than most.
#
#   bench/gpu_check.sh [where results go (build/gpu)]
#
# Needs nvcc, and a python3 with PyTorch (CUDA), NumPy, ml_dtypes, pybind11, scikit-build-core, pytest,
# pytest-timeout, hypothesis, typer and rich. Each step has its share of the time; one that fails does
# not keep the others from running. The exit status is 0 if none has failed.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${1:-build/gpu}")
SITE=build/gpu/site
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT" build/gpu
failed=()

# step NAME SECONDS COMMAND...: its output goes to a log, the end of it here.
step() {
    local name=$1 limit=$2 begin=$SECONDS left=$((535 - SECONDS))
    shift 2
    limit=$((limit < left ? limit : left))
    if ((limit < 5)); then
        echo "== $name: no time left"
        failed+=("$name")
        return
    fi
    timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
    local status=$?
    echo "== $name: status $status, $((SECONDS - begin)) s"
    tail -n 12 "$OUT/$name.log"
    ((status == 0)) || failed+=("$name")
}

export PATH="$PATH:/usr/local/cuda/bin"
nvidia-smi >"$OUT/nvidia-smi.log" 2>&1
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
export SKBUILD_BUILD_DIR=build/gpu/build
export SKBUILD_CMAKE_DEFINE="FASTNORM_CUDA=ON;FASTNORM_CUDA_ARCHITECTURES=$architecture"
step build 240 "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index --upgrade \
    --target "$SITE" .
export PYTHONPATH="$PWD/$SITE:$PWD/bench:$PWD/tests"
export FASTNORM_BUILD_DIR=build/gpu/build

pytest=("$PYTHON" -m pytest -q -p no:cacheprovider)
step tests 100 "${pytest[@]}" tests/test_cuda.py tests/test_cuda_arrays.py
step norm_tests 80 "${pytest[@]}" tests/test_cuda_norms.py tests/test_cuda_edges.py
step gpu_tests 60 "${pytest[@]}" tests/test_cuda_gpu.py
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "$PYTHON" tests/cuda/few_shapes.py
    done
else
    echo "== memcheck, racecheck: skipped, there is no compute-sanitizer"
fi
bench=("$PYTHON" bench/gpu.py --seconds)
step bench 80 "${bench[@]}" 50 --out "$OUT/bench.json" --layout NCHW
step bench_fused 50 "${bench[@]}" 30 --out "$OUT/bench_fused.json" --layout NCHW --dtype bfloat16 \
    --epilogue residual_relu --provider fastnorm,torch,torch_native
step bench_nhwc 40 "${bench[@]}" 25 --out "$OUT/bench_nhwc.json" --layout NHWC \
    --provider fastnorm,torch,torch_native
step bench_rows 50 "${bench[@]}" 30 --out "$OUT/bench_rows.json" --suite llama --dtype bfloat16 \
    --epilogue plain,prenorm --op inference,backward
step bench_groups 40 "${bench[@]}" 25 --out "$OUT/bench_groups.json" --suite sd_unet \
    --dtype bfloat16 --epilogue silu --op inference,backward --layout NCHW,NHWC
# The CPU's side.
step cpu_tests 60 "${pytest[@]}" tests/test_bits.py tests/test_concurrency.py
for threads in 1 2 4 8 16; do
    ((threads <= $(nproc))) || break
    step "threads_$threads" 20 "$PYTHON" bench/run.py --threads "$threads" --provider fastnorm \
        --only 32x256x56x56 --rounds 5 --out "$OUT/threads_$threads.json"
done

echo "== ${SECONDS} s in all; failed: ${failed[*]:-none}"
((${#failed[@]} == 0))

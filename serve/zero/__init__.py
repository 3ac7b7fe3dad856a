"""Answers on ZeroGPU, where a GPU is lent for seconds at a time: rows are made ready here and grow in a forked process.

How ZeroGPU works (package `spaces` 0.51.3, which only such Spaces have): a function that `spaces.GPU` decorates runs in
a process forked for it, where torch sees a real GPU; the forking process has none. Whatever was moved to "cuda" before
the app was launched is moved to the GPU for real in each such process. Threads do not survive a fork, and the imitation
of CUDA in the forking process works in its main thread alone. So here:

- `enter` comes first, in the main thread; then, still there and before the app is launched, `load_lent` loads the base
  on the CPU, where bitsandbytes quantizes it too, and moves it (loading straight onto "cuda" reads files in threads of
  its own, which the imitation does not reach), and `lend` decorates what generates;
- examples, prompts and adapters' checks are this process's work, which costs nobody's GPU time (serve.zero.engine);
- the forked process only generates, with adapters that it loads itself and keeps while it lives (serve.zero.lending).

What was tested: all of it with a stand-in for `spaces` that really forks, on a tiny base without a GPU; loading and
moving the embedded base, unquantized and NF4, under the imitation of the real package. It never ran on ZeroGPU itself.
"""

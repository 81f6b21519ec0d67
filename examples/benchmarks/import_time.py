"""Time `import bertclf` against `import sklearn`, each in a fresh process, in turn.

Torch and transformers, which take seconds to import, are imported by the first fit.

    python examples/benchmarks/import_time.py
"""

import argparse
import statistics
import subprocess
import sys
import time

MODULES = ["sklearn", "bertclf"]
HEAVY = "import sys, bertclf; print(*[name for name in ('torch', 'transformers') if name in sys.modules])"


def seconds_to_import(module):
    """Return the seconds that a new interpreter takes to start, import a module and end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    for module in MODULES:  # once untimed, so that compiled files and the disk cache are there
        seconds_to_import(module)
    seconds = {module: [] for module in MODULES}
    for _ in range(arguments.repeats):
        for module in MODULES:
            seconds[module].append(seconds_to_import(module))

    medians = {module: statistics.median(times) for module, times in seconds.items()}
    for module, median in medians.items():
        print(f"import {module:<8} {median:.3f} s (median of {arguments.repeats})")
    print(f"ratio {medians['bertclf'] / medians['sklearn']:.2f}")
    heavy = subprocess.run([sys.executable, "-c", HEAVY], check=True, capture_output=True, text=True).stdout.strip()
    print(f"imported along with bertclf: {heavy or 'neither torch nor transformers'}")


if __name__ == "__main__":
    main()

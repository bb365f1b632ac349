"""`python -m engine.bench`: one side of a measurement, started by `python -m engine bench`."""

from engine.bench.stages import main

if __name__ == "__main__":
    main()

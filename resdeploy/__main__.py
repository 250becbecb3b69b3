"""`python -m resdeploy` is `resdeploy`."""

from resdeploy.cli import main

if __name__ == "__main__":
    main()

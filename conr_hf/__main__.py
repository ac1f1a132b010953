"""`python -m conr_hf` is `conr-hf`; `accelerate launch -m conr_hf` starts it on several processes."""

from conr_hf.cli.main import main

if __name__ == "__main__":
    main()

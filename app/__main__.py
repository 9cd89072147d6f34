"""`python -m app web|worker|courier|up`: one command a role."""

if __name__ == "__main__":
    # Not at the top: a worker's child reads this file too, and needs none of the commands.
    from app.cli import main

    main()

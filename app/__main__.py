"""`python -m app web|worker|courier|up`: one command a role."""

from app.cli import main

if __name__ == "__main__":
    main()

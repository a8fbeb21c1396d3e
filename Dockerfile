FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml LICENSE README.md ./
COPY celery_defer celery_defer
RUN pip install --no-cache-dir ".[postgresql,mysql,flower]"
COPY examples examples

RUN useradd --create-home shop
USER shop

# Compose says which of worker, beat and flower this is.
CMD ["celery", "-A", "examples.shop", "worker", "--loglevel", "INFO"]

"""A small Django project whose Celery application has durable tasks."""

"""What a run is, without Celery: the context of the body, its steps and deferrals, its deliveries and its end."""

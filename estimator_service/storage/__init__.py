"""What the estimator keeps: quotes and observations. The only importer of SQLAlchemy."""

"""Sources of data as `tf.data` pipelines, and codes as files."""

"""Methods that divide the training rows into environments if the data have no environment labels."""

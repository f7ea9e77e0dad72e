//! Reading the log again.

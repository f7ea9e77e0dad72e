//! Inline policies through IAM.

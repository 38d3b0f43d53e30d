//! The only pyo3: translates, decides nothing.

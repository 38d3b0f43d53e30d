//! Marks that models write and that their templates do not render: they are known here.

/// Marks of reasoning that templates look for and do not always write themselves.
pub(crate) const REASONING: [(&str, &str); 9] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
];

/// Marks of what is said that templates ask for and do not write themselves: a word of the template, and the marks.
pub(crate) const SAID: [(&str, &str, &str); 3] = [
    ("<response></response>", "<response>", "</response>"),
    ("[END FINAL RESPONSE]", "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
    (">>>all\\n", ">>>all\n", ""),
];

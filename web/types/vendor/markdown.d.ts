export { default as DOMPurify } from "dompurify";
export { Lexer, Marked } from "marked";

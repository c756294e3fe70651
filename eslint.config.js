// The page's scripts: the recommended rules, small functions, and no way for a text to become markup.

import js from "@eslint/js";
import globals from "globals";

const MARKUP = "texts go through textContent: whatever a model or a stranger writes must stay a text";

export default [
  { ignores: ["**/node_modules/", ".venv/"] },
  js.configs.recommended,
  {
    files: ["assets/js/**/*.js"],
    languageOptions: { ecmaVersion: 2023, sourceType: "module", globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "no-undef": "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_", caughtErrors: "none" }],
      "prefer-const": "error",
      "no-var": "error",
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      eqeqeq: "error",
      "max-lines": ["error", { max: 600 }],
      "max-lines-per-function": ["error", { max: 120, skipComments: true, skipBlankLines: true }],
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML", "setHTMLUnsafe", "createContextualFragment", "srcdoc"].map(
          (property) => ({ property, message: MARKUP }),
        ),
        ...["write", "writeln"].map((property) => ({ object: "document", property, message: MARKUP })),
      ],
    },
  },
];

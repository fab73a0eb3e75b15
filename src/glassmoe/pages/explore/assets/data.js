// The page's data: scripts that hand over one value each, loaded when they are needed. A page on disk may read other
// files only as scripts.
"use strict";
const glass = {
  values: new Map(),
  waiting: new Map(),
  got(name, value) {
    glass.values.set(name, value);
  },
  // The value of a data file, as a promise; each file is loaded once.
  load(name) {
    if (!glass.waiting.has(name)) {
      glass.waiting.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `${name}.js`;
        script.onload = () => resolve(glass.values.get(name));
        script.onerror = () => {
          glass.waiting.delete(name);
          reject(new Error(`${name}.js is not there`));
        };
        document.head.append(script);
      }));
    }
    return glass.waiting.get(name);
  },
  // What a server answers to a question, such as `prompt.js?text=...`; every time anew.
  ask(name, values) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${name}.js?${new URLSearchParams(values)}`;
      script.onload = () => {
        script.remove();
        resolve(glass.values.get(name));
      };
      script.onerror = () => {
        script.remove();
        reject(new Error("the server does not answer"));
      };
      document.head.append(script);
    });
  },
};

// What the tests ask a page of JupyterLab, as functions of `rpo`. JupyterLab offers itself as `jupyterapp`.
window.rpo = (() => {
  const notebook = () => jupyterapp.shell.currentWidget;
  const kernel = () => notebook().sessionContext.session?.kernel;
  const outputs = () => [...notebook().node.querySelectorAll('.jp-OutputArea-output')];
  const visible = e => e.getClientRects().length > 0 && getComputedStyle(e).visibility !== 'hidden';
  const CONTROLS = 'select, input, textarea, button, [role=slider]';
  const widgets = () => outputs().filter(e => e.querySelector('.jupyter-widgets'));
  const controls = () => widgets().flatMap(o => [...o.querySelectorAll('.jupyter-widgets')])
    .filter(e => e.matches('button') || !e.querySelector('.jupyter-widgets'))
    .flatMap(e => (e.matches('button') ? [e] : [...e.querySelectorAll(CONTROLS)])).filter(visible);
  const cellOf = e => notebook().content.widgets.find(cell => cell.node.contains(e))?.model.id ?? 'the page';

  // ---- the accessible name of a control, as far as ours need it
  const named = e => {
    const by = (e.getAttribute('aria-labelledby') ?? '').split(' ').map(id => document.getElementById(id)?.textContent);
    const label = e.id && document.querySelector(`label[for="${CSS.escape(e.id)}"]`)?.textContent;
    // ipywidgets gives sliders neither a name nor a title: their label stands beside or above them
    const own = e.matches('[role=slider], [type=number]') && e.closest('.jupyter-widgets');
    const beside = own && (own.querySelector('.widget-label')?.textContent || own.previousElementSibling?.textContent);
    return [e.getAttribute('aria-label'), ...by, beside, label, e.closest('label')?.textContent, e.getAttribute('title'),
      e.matches('button') && e.textContent].map(text => (text || '').trim()).find(Boolean) ?? '';
  };
  const kindOf = e => e.matches('select') ? 'select' : e.matches('[role=slider]') ? 'slider'
    : e.matches('input[type=number]') ? 'number' : e.matches('[type=checkbox]') ? 'box' : e.matches('button') ? 'button' : 'text';
  const describe = index => {
    const e = controls()[index];
    if (!e) return { usable: false };
    const kind = kindOf(e);
    const found = { kind, name: `${cellOf(e)}: ${kind} ${named(e)}`, usable: !e.disabled };
    if (kind === 'select') {
      found.other = (e.selectedIndex + 1) % Math.max(1, e.options.length);
      found.usable &&= e.options.length > 1;
    }
    if (kind === 'slider') {
      const [now, low, high] = ['now', 'min', 'max'].map(name => Number(e.getAttribute(`aria-value${name}`)));
      found.key = now < high ? 'ArrowRight' : 'ArrowLeft';
      found.usable &&= low < high;
    }
    if (kind === 'number') {
      found.other = String(e.value === e.max ? Number(e.value) - 1 : Number(e.value) + 1);
      found.usable &&= e.min !== e.max;
    }
    return found;
  };

  // ---- layout
  const text = (e, words) => {
    const style = getComputedStyle(e), pen = document.createElement('canvas').getContext('2d');
    pen.font = `${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
    return pen.measureText(words).width + parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
  };
  const said = (e, why) => `${cellOf(e)}: ${e.tagName.toLowerCase()}.${[...e.classList].slice(-1)} `
    + `"${(named(e) || e.textContent).trim().slice(0, 40)}" ${why}`;
  const clipped = narrow => {
    const found = [];
    for (const output of outputs().filter(visible)) {
      const right = output.getBoundingClientRect().right + 1;
      const isTable = output.querySelector('table') && !output.querySelector('.jupyter-widgets');
      if (output.scrollWidth > output.clientWidth + 1 && !(narrow && isTable))  // a table may scroll on a narrow page
        found.push(said(output, `is ${output.scrollWidth} wide in ${output.clientWidth}`));
      for (const e of output.querySelectorAll('*')) {
        if (!visible(e) || e.closest('svg, .MathJax, mjx-container, .noUi-target')) continue;
        const own = e.closest('.jupyter-widgets, img, table');
        if (e.closest('.jupyter-widgets') && e.getBoundingClientRect().right > right) found.push(said(e, 'ends outside of its cell'));
        const clips = getComputedStyle(e).overflowX !== 'visible' && !e.matches('input, textarea, select');
        if (own && clips && e.scrollWidth > e.clientWidth + 1) found.push(said(e, `${e.scrollWidth} > ${e.clientWidth}`));
        if (e.matches('select:not([multiple])') && e.selectedOptions.length
            && text(e, e.selectedOptions[0].textContent) > e.clientWidth + 1) found.push(said(e, 'cuts its option'));
      }
    }
    for (const page of [...notebook().node.querySelectorAll('.jp-MarkdownOutput')].filter(visible))  // formulas
      if (page.scrollWidth > page.clientWidth + 1) found.push(said(page, `is ${page.scrollWidth} wide in ${page.clientWidth}`));
    return [...new Set(found)];
  };

  // ---- alternatives and names
  const unnamed = () => controls().filter(e => !named(e)).map(e => said(e, 'has no name'));
  const wordless = () => [...notebook().node.querySelectorAll('img')].filter(visible)
    .filter(e => (e.getAttribute('alt') ?? '').length < 12).map(e => said(e, 'has no alternative text'));
  const broken = () => [...notebook().node.querySelectorAll('img')].filter(visible)
    .filter(e => e.complete && e.naturalWidth === 0).map(e => said(e, `does not load: ${e.src.slice(0, 80)}`));
  const unreachable = () => controls().filter(e => !e.disabled && e.tabIndex < 0).map(e => said(e, 'has no focus'));

  // ---- contrast of text with what is behind it (WCAG 2: 4.5 to 1, 3 to 1 for large text)
  const rgba = s => { const m = s.match(/[\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = c => c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    const layers = [];
    for (let at = e; at; at = at.parentElement) {
      layers.push(rgba(getComputedStyle(at).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const faint = () => {
    const found = new Set();
    for (const output of outputs().filter(visible)) for (const e of output.querySelectorAll('*')) {
      const words = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
      if (!words || !visible(e) || e.disabled || e.closest('svg, style, script, .jp-mod-sr-only')) continue;
      let opacity = 1;
      for (let at = e; at && at !== output; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity);
      const style = getComputedStyle(e), back = behind(e), ink = rgba(style.color);
      const [a, b] = [light(over([...ink.slice(0, 3), ink[3] * opacity], back)), light(back)].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) found.add(said(e, `contrast ${ratio.toFixed(1)}`));
    }
    return [...found];
  };

  // ---- errors
  const cells = () => notebook().content.model.sharedModel.cells.map(cell => cell.toJSON());
  const errorsOf = (outputs, where) => (outputs ?? []).flatMap(output => output.output_type === 'error'
    ? [`${where}: ${output.ename}: ${output.evalue}`]
    : output.output_type === 'stream' && /Traceback|Error:/.test([output.text].flat().join(''))
      ? [`${where}: ${[output.text].flat().join('').slice(-400)}`] : []);
  const hidden = async () => {
    const code = `import json as _json, sys as _sys
if "ipywidgets" in _sys.modules:
    _states = _sys.modules["ipywidgets"].Widget.get_manager_state()["state"].values()
    print(_json.dumps([state["state"].get("outputs", []) for state in _states if state["model_name"] == "OutputModel"]))
else:
    print("[]")`;
    let printed = '';
    const future = kernel().requestExecute({ code, store_history: false });
    future.onIOPub = msg => { if (msg.header.msg_type === 'stream') printed += msg.content.text; };
    await future.done;
    return JSON.parse(printed);
  };
  const errors = async () => [
    ...cells().flatMap(cell => errorsOf(cell.outputs, cell.id)),
    ...(await hidden()).flatMap(outputs => errorsOf(outputs, 'an Output widget')),
    ...[...notebook().node.querySelectorAll('.jupyter-widgets-disconnected, .jp-mod-broken')].map(e => said(e, 'is broken')),
  ];
  const pictures = () => cells().flatMap(cell => (cell.outputs ?? []).filter(output => output.data?.['image/png'])
    .map(output => [cell.id, [output.data['image/png']].flat().join('')]));

  // ---- what the kernel is doing: its messages since `listen`
  const self = {
    kernel, controls, describe, clipped, unnamed, wordless, broken, unreachable, faint, errors, pictures,
    busy: 0, last: 0, ended: false,
    listen() {
      kernel().anyMessage.connect((_, { msg, direction }) => {
        self.last = performance.now();
        if (direction === 'send' && ['shell', undefined].includes(msg.channel)) self.asked = msg.header.msg_id;
        if (msg.header.msg_type === 'status') self.busy += { busy: 1, idle: -1 }[msg.content.execution_state] ?? 0;
      });
    },
    runAll() { jupyterapp.commands.execute('notebook:run-all-cells').then(() => { self.ended = true; }); },
    isQuiet: quiet => self.busy <= 0 && kernel().status === 'idle' && performance.now() - self.last > quiet,
    state: () => JSON.stringify(widgets().map(e => e.innerHTML)),
    async look(theme, narrow) {
      const name = `JupyterLab ${theme[0].toUpperCase()}${theme.slice(1)}`;
      await jupyterapp.commands.execute('apputils:change-theme', { theme: name });
      if (narrow === !jupyterapp.shell.leftCollapsed) await jupyterapp.commands.execute('application:toggle-left-area');
    },
    scroller: () => notebook().node.querySelector('.jp-WindowedPanel-outer'),
    shutdown: () => notebook().sessionContext.shutdown(),
  };
  return self;
})();

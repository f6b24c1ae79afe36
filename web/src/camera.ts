// SPDX-License-Identifier: Apache-2.0
/** A photo from the camera of this device. */

import { byId, toast } from "./dom";

/** Opens the dialog; resolves with the photo, or null where none was taken. */
export async function takePhoto(): Promise<File | null> {
  const media = navigator.mediaDevices as MediaDevices | undefined;
  if (media === undefined) {
    toast("This browser gives the camera only to pages of this machine or of https addresses.");
    return null;
  }
  let stream: MediaStream;
  try {
    stream = await media.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
  } catch (error) {
    const denied = error instanceof DOMException && error.name === "NotAllowedError";
    toast(denied ? "The camera was not allowed for this page." : "There is no camera that can be used.");
    return null;
  }
  const dialog = byId<HTMLDialogElement>("camera");
  const video = byId<HTMLVideoElement>("video");
  video.srcObject = stream;
  const stop = () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
  try {
    dialog.showModal();
    await video.play();
    return await new Promise<File | null>((done) => {
      const ends = new AbortController();
      const finish = (file: File | null) => {
        ends.abort();
        done(file);
      };
      const { signal } = ends;
      byId("shoot").addEventListener("click", () => void shot(video).then(finish), { signal });
      byId("camera-close").addEventListener("click", () => finish(null), { signal });
      dialog.addEventListener("cancel", () => finish(null), { signal });
    });
  } finally {
    stop();
    dialog.close();
  }
}

async function shot(video: HTMLVideoElement): Promise<File | null> {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d")?.drawImage(video, 0, 0);
  const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  return blob === null ? null : new File([blob], `camera-${clock()}.jpg`, { type: "image/jpeg" });
}

/** Hours, minutes and seconds, for the names of photos that have none. */
export function clock(): string {
  return new Date().toTimeString().slice(0, 8).replaceAll(":", "");
}
